"""`method`: what is learned. One section per method; nothing is loaded here, so that each can be imported by itself."""

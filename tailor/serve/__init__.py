"""An HTTP server with the interface of OpenAI for trained runs: requests, the engine that answers them, and limits."""

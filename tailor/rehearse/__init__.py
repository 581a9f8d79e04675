"""`tailor rehearse`: the whole recipe in small, with a tiny random model, by the code of `tailor run`."""

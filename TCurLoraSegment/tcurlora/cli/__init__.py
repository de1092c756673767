"""The command `tcurlora` and the warm worker: words in, events out. What a command needs is imported when it runs."""

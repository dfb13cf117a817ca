"""The server: OpenAI's interface and a page, in front of an engine in a process of its own."""

"""The console: pages for people, made on the server, over the same functions as the routes below /v1."""

"""HTTP: the ASGI application, its routes and middleware, uploads, and the server process."""

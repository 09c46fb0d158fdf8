"""HTTP: the security gate, our /api/v1 and the /sdapi/v1 of A1111 clients."""

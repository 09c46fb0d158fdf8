"""The web UI's code. Read `generation/engine.py` first: one request becomes images there.

The packages, in the order in which a picture is made, are listed in docs/architecture.md; a package imports only from
packages below it, and tests/test_architecture.py holds it to that.
"""

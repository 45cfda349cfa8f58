"""Real servers for tests: each on free loopback ports, its data in a temporary folder, gone when the tests are.

    async with NatsServer(token="secret") as server:    # or `with`, which blocks
        server.url                                      # with the right credentials; `server.address` is host:port
        await server.restart(kill=True)                 # the same ports, the same data

See `process.Server` for what all of them do, `fixtures` for those the whole session shares, and `proxy` for a network
that fails.
"""

"""Metadata: the JuiceFS keyspace in Redis, one Lua script per mutation."""

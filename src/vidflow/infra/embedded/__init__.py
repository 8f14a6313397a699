"""The real PostgreSQL and the real Kafka, from wheels and jars, for `vidflow dev`, `vidflow run` and the tests. Not for production."""

"""PostgreSQL and Kafka servers from wheels and jars, for `vidflow dev`, `vidflow run` and tests. Not for production."""

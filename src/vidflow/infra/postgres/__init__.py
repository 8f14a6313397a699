"""PostgreSQL: connections, one module for each table, leases, migrations, backup and retention."""

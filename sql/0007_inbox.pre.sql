-- When an inbox last held the partition: it may run and not have caught up, while a broker is away.
ALTER TABLE inbox_partitions ADD COLUMN seen_at timestamptz;

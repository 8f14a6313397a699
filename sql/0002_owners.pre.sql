-- Owners of scenarios, the tokens by which they are known, and the record of what they changed.

ALTER TABLE scenarios ADD COLUMN owner text NOT NULL DEFAULT 'local';

-- A client's list of its own scenarios: all of them, and those of one state. Most scenarios are inactive, for which the first serves.
CREATE INDEX scenarios_of_owner ON scenarios (owner, scenario_uuid DESC);
CREATE INDEX scenarios_of_owner_by_state ON scenarios (owner, state, scenario_uuid DESC) WHERE state <> 'inactive';

-- Only the SHA-256 of a token is stored. A row is never deleted: once there is one, each request needs a token.
CREATE TABLE tokens (
    token_id     text        PRIMARY KEY,
    token_sha256 bytea       NOT NULL,
    owner        text        NOT NULL,
    rights       text        NOT NULL CHECK (rights IN ('read', 'write', 'admin')),
    note         text        NOT NULL DEFAULT '',
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz,
    revoked_at   timestamptz,
    last_used_at timestamptz
);

-- Who changed what. `address` is that of the client, or null for a command of the operator, whose `owner` is their database user.
CREATE TABLE audit (
    id            bigint      PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    at            timestamptz NOT NULL DEFAULT clock_timestamp(),
    scenario_uuid uuid,
    action        text        NOT NULL,
    owner         text        NOT NULL,
    token_id      text,
    address       text,
    detail        text
);

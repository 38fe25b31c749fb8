//! The schema, as explicit steps upward. A released step never changes.

use sea_orm_migration::prelude::*;

/// How many steps this program knows.
pub const SCHEMA_VERSION: u32 = 3;

pub(crate) struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(Step { name: "m0001_first_vm", statements: FIRST }),
            Box::new(Step { name: "m0002_no_outbox", statements: NO_OUTBOX }),
            Box::new(Step { name: "m0003_executions", statements: EXECUTIONS }),
        ]
    }
}

/// One step: all of its statements, or none.
struct Step {
    name: &'static str,
    statements: &'static [&'static str],
}

impl MigrationName for Step {
    fn name(&self) -> &str {
        self.name
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Step {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for statement in self.statements {
            manager.get_connection().execute_unprepared(statement).await?;
        }
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

/// Columns beside `record` are copies for queries; `record` is what is read back. Times are
/// milliseconds since the epoch.
const FIRST: &[&str] = &[
    "CREATE TABLE vms (
        id TEXT NOT NULL PRIMARY KEY,
        project_id TEXT NOT NULL,
        name TEXT NOT NULL,
        backend TEXT NOT NULL,
        state INTEGER NOT NULL,
        desired_power TEXT NOT NULL,
        deleted BOOLEAN NOT NULL,
        machine TEXT NOT NULL,
        failed BOOLEAN NOT NULL,
        expires_at BIGINT,
        resource_version BIGINT NOT NULL,
        created_at BIGINT NOT NULL,
        updated_at BIGINT NOT NULL,
        record TEXT NOT NULL,
        UNIQUE (project_id, name)
    )",
    "CREATE INDEX vms_unsettled ON vms (id) WHERE
        deleted OR machine = 'lingering' OR (NOT failed AND (
            (desired_power = 'running' AND machine <> 'running')
            OR (desired_power = 'paused' AND machine <> 'paused')
            OR (desired_power = 'stopped' AND machine IN ('running', 'paused', 'absent'))))",
    "CREATE INDEX vms_by_term ON vms (expires_at) WHERE expires_at IS NOT NULL",
    "CREATE TABLE vm_metadata (
        vm_id TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
        project_id TEXT NOT NULL,
        key TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (vm_id, key)
    )",
    "CREATE INDEX vm_metadata_by_key ON vm_metadata (project_id, key, value)",
    "CREATE TABLE operations (
        id TEXT NOT NULL PRIMARY KEY,
        project_id TEXT NOT NULL,
        vm_id TEXT NOT NULL,
        kind TEXT NOT NULL,
        status TEXT NOT NULL,
        priority TEXT NOT NULL,
        finished_at BIGINT,
        record TEXT NOT NULL
    )",
    "CREATE INDEX operations_by_vm ON operations (vm_id, id)",
    "CREATE INDEX operations_open ON operations (vm_id, id) WHERE finished_at IS NULL",
    "CREATE INDEX operations_ended ON operations (finished_at) WHERE finished_at IS NOT NULL",
    "CREATE TABLE resources (
        vm_id TEXT NOT NULL REFERENCES vms (id),
        project_id TEXT NOT NULL,
        kind TEXT NOT NULL,
        key TEXT NOT NULL,
        record TEXT NOT NULL,
        PRIMARY KEY (vm_id, kind, key)
    )",
    "CREATE TABLE outbox (
        id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
        project_id TEXT NOT NULL,
        at BIGINT NOT NULL,
        kind TEXT NOT NULL,
        vm_id TEXT,
        operation_id TEXT,
        data TEXT NOT NULL
    )",
    "CREATE TABLE events (
        position BIGINT NOT NULL PRIMARY KEY,
        project_id TEXT NOT NULL,
        at BIGINT NOT NULL,
        kind TEXT NOT NULL,
        vm_id TEXT,
        operation_id TEXT,
        data TEXT NOT NULL
    )",
    "CREATE TABLE idempotency_keys (
        project_id TEXT NOT NULL,
        key TEXT NOT NULL,
        digest TEXT NOT NULL,
        operation_id TEXT NOT NULL,
        vm_id TEXT NOT NULL,
        created_at BIGINT NOT NULL,
        PRIMARY KEY (project_id, key)
    )",
    "CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at)",
    "CREATE TABLE nodes (
        id TEXT NOT NULL PRIMARY KEY,
        project_id TEXT NOT NULL,
        epoch BIGINT NOT NULL,
        last_start BIGINT NOT NULL
    )",
];

/// Events get their positions with the commit; those that still wait get theirs here.
const NO_OUTBOX: &[&str] = &[
    "INSERT INTO events (position, project_id, at, kind, vm_id, operation_id, data)
        SELECT (SELECT coalesce(max(position), 0) FROM events) + row_number() OVER (ORDER BY id),
            project_id, at, kind, vm_id, operation_id, data
        FROM outbox",
    "DROP TABLE outbox",
];

/// They outlive their VMs: they are the record of what was done.
const EXECUTIONS: &[&str] = &[
    "CREATE TABLE executions (
        id TEXT NOT NULL PRIMARY KEY,
        project_id TEXT NOT NULL,
        vm_id TEXT NOT NULL,
        job_id TEXT,
        kind TEXT NOT NULL,
        status TEXT NOT NULL,
        started_at BIGINT NOT NULL,
        finished_at BIGINT,
        record TEXT NOT NULL
    )",
    "CREATE INDEX executions_by_vm ON executions (vm_id, id)",
    "CREATE INDEX executions_by_job ON executions (job_id, id) WHERE job_id IS NOT NULL",
    "CREATE INDEX executions_open ON executions (id) WHERE finished_at IS NULL",
    "CREATE INDEX executions_by_age ON executions (finished_at) WHERE finished_at IS NOT NULL",
    "CREATE TABLE jobs (
        id TEXT NOT NULL PRIMARY KEY,
        project_id TEXT NOT NULL,
        vm_id TEXT NOT NULL,
        status TEXT NOT NULL,
        finished_at BIGINT,
        record TEXT NOT NULL
    )",
    "CREATE INDEX jobs_by_vm ON jobs (vm_id, id)",
    "CREATE INDEX jobs_open ON jobs (id) WHERE finished_at IS NULL",
    "CREATE INDEX jobs_by_age ON jobs (finished_at) WHERE finished_at IS NOT NULL",
];

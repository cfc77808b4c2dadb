//! Numbers of libvirt's public interface (`libvirt-domain.h`), by its names: flags, states and reasons. libvirt never changes
//! one.

// What is listed.
pub(crate) const VIR_CONNECT_LIST_DOMAINS_ACTIVE: u32 = 1;

// Whose figures are told, and whether QEMU is waited for.
pub(crate) const VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE: u32 = 1;
pub(crate) const VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT: u32 = 1 << 29;

// Groups of figures.
pub(crate) const VIR_DOMAIN_STATS_CPU_TOTAL: u32 = 2;
pub(crate) const VIR_DOMAIN_STATS_BALLOON: u32 = 4;
pub(crate) const VIR_DOMAIN_STATS_INTERFACE: u32 = 16;
pub(crate) const VIR_DOMAIN_STATS_BLOCK: u32 = 32;

// What of a domain is changed, described or checked.
pub(crate) const VIR_DOMAIN_AFFECT_LIVE: u32 = 1;
pub(crate) const VIR_DOMAIN_VCPU_LIVE: u32 = 1;
pub(crate) const VIR_DOMAIN_XML_INACTIVE: u32 = 2;
pub(crate) const VIR_DOMAIN_DEFINE_VALIDATE: u32 = 1;
pub(crate) const VIR_DOMAIN_BLOCK_RESIZE_BYTES: u32 = 1;

// How a domain is switched on and off.
pub(crate) const VIR_DOMAIN_START_PAUSED: u32 = 1;
pub(crate) const VIR_DOMAIN_START_FORCE_BOOT: u32 = 8;
pub(crate) const VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN: u32 = 1;
pub(crate) const VIR_DOMAIN_DESTROY_GRACEFUL: u32 = 1;
pub(crate) const VIR_DOMAIN_SAVE_RUNNING: u32 = 2;

// What goes with a definition.
pub(crate) const VIR_DOMAIN_UNDEFINE_MANAGED_SAVE: u32 = 1;
pub(crate) const VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA: u32 = 2;
pub(crate) const VIR_DOMAIN_UNDEFINE_NVRAM: u32 = 4;
pub(crate) const VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA: u32 = 16;

// Disks that QEMU could not read or write; and as many as libvirt tells of.
pub(crate) const VIR_DOMAIN_DISK_ERROR_NONE: i32 = 0;
pub(crate) const VIR_DOMAIN_DISK_ERROR_NO_SPACE: i32 = 2;
pub(crate) const REMOTE_DOMAIN_DISK_ERRORS_MAX: u32 = 256;

// Jobs.
pub(crate) const VIR_DOMAIN_JOB_STATS_COMPLETED: u32 = 1;

// Jobs, as libvirt tells of them.
pub(crate) const VIR_DOMAIN_JOB_NONE: i32 = 0;
pub(crate) const VIR_DOMAIN_JOB_COMPLETED: i32 = 3;
pub(crate) const VIR_DOMAIN_JOB_OPERATION_BACKUP: i32 = 9;
pub(crate) const VIR_DOMAIN_JOB_OPERATION: &str = "operation";
pub(crate) const VIR_DOMAIN_JOB_SUCCESS: &str = "success";
pub(crate) const VIR_DOMAIN_JOB_ERRMSG: &str = "errmsg";
pub(crate) const VIR_DOMAIN_SCHEDULER_CPU_SHARES: &str = "cpu_shares";

// States and their reasons.
pub(crate) const VIR_DOMAIN_NOSTATE: i32 = 0;
pub(crate) const VIR_DOMAIN_NOSTATE_UNKNOWN: i32 = 0;
pub(crate) const VIR_DOMAIN_RUNNING: i32 = 1;
pub(crate) const VIR_DOMAIN_RUNNING_UNKNOWN: i32 = 0;
pub(crate) const VIR_DOMAIN_RUNNING_BOOTED: i32 = 1;
pub(crate) const VIR_DOMAIN_RUNNING_MIGRATED: i32 = 2;
pub(crate) const VIR_DOMAIN_RUNNING_RESTORED: i32 = 3;
pub(crate) const VIR_DOMAIN_RUNNING_FROM_SNAPSHOT: i32 = 4;
pub(crate) const VIR_DOMAIN_RUNNING_UNPAUSED: i32 = 5;
pub(crate) const VIR_DOMAIN_RUNNING_MIGRATION_CANCELED: i32 = 6;
pub(crate) const VIR_DOMAIN_RUNNING_SAVE_CANCELED: i32 = 7;
pub(crate) const VIR_DOMAIN_RUNNING_WAKEUP: i32 = 8;
pub(crate) const VIR_DOMAIN_RUNNING_CRASHED: i32 = 9;
pub(crate) const VIR_DOMAIN_RUNNING_POSTCOPY: i32 = 10;
pub(crate) const VIR_DOMAIN_RUNNING_POSTCOPY_FAILED: i32 = 11;
pub(crate) const VIR_DOMAIN_BLOCKED: i32 = 2;
pub(crate) const VIR_DOMAIN_BLOCKED_UNKNOWN: i32 = 0;
pub(crate) const VIR_DOMAIN_PAUSED: i32 = 3;
pub(crate) const VIR_DOMAIN_PAUSED_UNKNOWN: i32 = 0;
pub(crate) const VIR_DOMAIN_PAUSED_USER: i32 = 1;
pub(crate) const VIR_DOMAIN_PAUSED_MIGRATION: i32 = 2;
pub(crate) const VIR_DOMAIN_PAUSED_SAVE: i32 = 3;
pub(crate) const VIR_DOMAIN_PAUSED_DUMP: i32 = 4;
pub(crate) const VIR_DOMAIN_PAUSED_IOERROR: i32 = 5;
pub(crate) const VIR_DOMAIN_PAUSED_WATCHDOG: i32 = 6;
pub(crate) const VIR_DOMAIN_PAUSED_FROM_SNAPSHOT: i32 = 7;
pub(crate) const VIR_DOMAIN_PAUSED_SHUTTING_DOWN: i32 = 8;
pub(crate) const VIR_DOMAIN_PAUSED_SNAPSHOT: i32 = 9;
pub(crate) const VIR_DOMAIN_PAUSED_CRASHED: i32 = 10;
pub(crate) const VIR_DOMAIN_PAUSED_STARTING_UP: i32 = 11;
pub(crate) const VIR_DOMAIN_PAUSED_POSTCOPY: i32 = 12;
pub(crate) const VIR_DOMAIN_PAUSED_POSTCOPY_FAILED: i32 = 13;
pub(crate) const VIR_DOMAIN_PAUSED_API_ERROR: i32 = 14;
pub(crate) const VIR_DOMAIN_SHUTDOWN: i32 = 4;
pub(crate) const VIR_DOMAIN_SHUTDOWN_UNKNOWN: i32 = 0;
pub(crate) const VIR_DOMAIN_SHUTDOWN_USER: i32 = 1;
pub(crate) const VIR_DOMAIN_SHUTOFF: i32 = 5;
pub(crate) const VIR_DOMAIN_SHUTOFF_UNKNOWN: i32 = 0;
pub(crate) const VIR_DOMAIN_SHUTOFF_SHUTDOWN: i32 = 1;
pub(crate) const VIR_DOMAIN_SHUTOFF_DESTROYED: i32 = 2;
pub(crate) const VIR_DOMAIN_SHUTOFF_CRASHED: i32 = 3;
pub(crate) const VIR_DOMAIN_SHUTOFF_MIGRATED: i32 = 4;
pub(crate) const VIR_DOMAIN_SHUTOFF_SAVED: i32 = 5;
pub(crate) const VIR_DOMAIN_SHUTOFF_FAILED: i32 = 6;
pub(crate) const VIR_DOMAIN_SHUTOFF_FROM_SNAPSHOT: i32 = 7;
pub(crate) const VIR_DOMAIN_SHUTOFF_DAEMON: i32 = 8;
pub(crate) const VIR_DOMAIN_CRASHED: i32 = 6;
pub(crate) const VIR_DOMAIN_CRASHED_UNKNOWN: i32 = 0;
pub(crate) const VIR_DOMAIN_CRASHED_PANICKED: i32 = 1;
pub(crate) const VIR_DOMAIN_PMSUSPENDED: i32 = 7;
pub(crate) const VIR_DOMAIN_PMSUSPENDED_UNKNOWN: i32 = 0;

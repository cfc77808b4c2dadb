//! What can be asked: procedures with their numbers, and the shapes of questions and answers, by libvirt's names for them.
//!
//! A procedure is never renumbered and its shapes never change: a client may be older than the libvirt it talks to, and
//! libvirt gives what it wants to say anew a new number.

use std::{marker::PhantomData, sync::Arc};

use super::{
    packet::Program,
    xdr::{Malformed, Pack, Reader, Unpack, Writer},
};

/// A procedure that is asked with `A` and answers with `R`.
#[derive(Debug)]
pub(super) struct Procedure<A, R> {
    /// Whose it is.
    pub(super) program: Program,
    /// Its number.
    pub(super) number: i32,
    shapes: PhantomData<fn(A) -> R>,
}

impl<A, R> Procedure<A, R> {
    const fn remote(number: i32) -> Self {
        Self {
            program: Program::REMOTE,
            number,
            shapes: PhantomData,
        }
    }

    const fn qemu(number: i32) -> Self {
        Self {
            program: Program::QEMU,
            number,
            shapes: PhantomData,
        }
    }
}

/// A domain, as it is named in questions.
pub(super) type Dom = Arc<RemoteDomain>;
/// Bits that say how.
pub(super) type Flags = u32;

/// Numbers of `REMOTE_PROC_*` and `QEMU_PROC_*`.
macro_rules! procedures {
    ($($program:ident { $($name:ident = $number:literal: ($($question:ty),*) -> $answer:ty;)* })*) => {
        $($(pub(super) const $name: Procedure<($($question,)*), $answer> = Procedure::$program($number);)*)*

        /// All of them: program, number and name.
        #[cfg(test)]
        pub(super) const ALL: &[(&str, i32, &str)] =
            &[$($((stringify!($program), $number, stringify!($name)),)*)*];
    };
}

procedures! {
    remote {
        CONNECT_OPEN = 1: (Option<String>, Flags) -> ();
        CONNECT_GET_VERSION = 4: () -> u64;
        NODE_GET_INFO = 6: () -> RemoteNodeInfo;
        DOMAIN_GET_XML_DESC = 14: (Dom, Flags) -> String;
        DOMAIN_LOOKUP_BY_NAME = 23: (String) -> Dom;
        DOMAIN_LOOKUP_BY_UUID = 24: ([u8; 16]) -> Dom;
        DOMAIN_RESUME = 28: (Dom) -> ();
        DOMAIN_SUSPEND = 34: (Dom) -> ();
        AUTH_LIST = 66: () -> Vec<i32>;
        DOMAIN_IS_ACTIVE = 150: (Dom) -> i32;
        DOMAIN_IS_PERSISTENT = 151: (Dom) -> i32;
        CONNECT_GET_LIB_VERSION = 157: () -> u64;
        DOMAIN_ATTACH_DEVICE_FLAGS = 160: (Dom, String, Flags) -> ();
        DOMAIN_DETACH_DEVICE_FLAGS = 161: (Dom, String, Flags) -> ();
        DOMAIN_GET_JOB_INFO = 163: (Dom) -> RemoteJobInfo;
        DOMAIN_ABORT_JOB = 164: (Dom) -> ();
        DOMAIN_UPDATE_DEVICE_FLAGS = 174: (Dom, String, Flags) -> ();
        DOMAIN_MANAGED_SAVE = 182: (Dom, Flags) -> ();
        DOMAIN_HAS_MANAGED_SAVE_IMAGE = 183: (Dom, Flags) -> i32;
        DOMAIN_MANAGED_SAVE_REMOVE = 184: (Dom, Flags) -> ();
        DOMAIN_CREATE_WITH_FLAGS = 196: (Dom, Flags) -> Dom;
        DOMAIN_SET_VCPUS_FLAGS = 199: (Dom, u32, Flags) -> ();
        DOMAIN_SCREENSHOT = 211: (Dom, u32, Flags) -> Option<String>;
        DOMAIN_GET_STATE = 212: (Dom, Flags) -> (i32, i32);
        DOMAIN_SET_SCHEDULER_PARAMETERS_FLAGS = 219: (Dom, Vec<TypedParam>, Flags) -> ();
        DOMAIN_UNDEFINE_FLAGS = 231: (Dom, Flags) -> ();
        DOMAIN_DESTROY_FLAGS = 234: (Dom, Flags) -> ();
        DOMAIN_BLOCK_RESIZE = 251: (Dom, String, u64, Flags) -> ();
        DOMAIN_SHUTDOWN_FLAGS = 258: (Dom, Flags) -> ();
        DOMAIN_GET_DISK_ERRORS = 263: (Dom, u32, Flags) -> (Vec<RemoteDiskError>, i32);
        CONNECT_LIST_ALL_DOMAINS = 273: (i32, Flags) -> (Vec<Dom>, u32);
        DOMAIN_GET_JOB_STATS = 298: (Dom, Flags) -> (i32, Vec<TypedParam>);
        CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY = 316: (i32, Option<Dom>) -> i32;
        CONNECT_GET_ALL_DOMAIN_STATS = 344: (Vec<Dom>, u32, Flags) -> Vec<DomainStatsRecord>;
        DOMAIN_DEFINE_XML_FLAGS = 350: (String, Flags) -> Dom;
        DOMAIN_MANAGED_SAVE_GET_XML_DESC = 388: (Dom, Flags) -> String;
        DOMAIN_BACKUP_BEGIN = 421: (Dom, String, Option<String>, Flags) -> ();
        DOMAIN_BACKUP_GET_XML_DESC = 422: (Dom, Flags) -> String;
    }
    qemu {
        DOMAIN_MONITOR_COMMAND = 1: (Dom, String, Flags) -> String;
        DOMAIN_AGENT_COMMAND = 3: (Dom, String, i32, Flags) -> Option<String>;
    }
}

/// Something that libvirt tells of domains unasked, once it was asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DomainEvent {
    /// What it is asked for by (`virDomainEventID` of `libvirt-domain.h`).
    pub(super) id: i32,
    /// The procedure of the packets that tell of it.
    pub(super) message: i32,
}

/// Numbers of `VIR_DOMAIN_EVENT_ID_*` and of `REMOTE_PROC_DOMAIN_EVENT_CALLBACK_*`.
macro_rules! events {
    ($($name:ident = $id:literal: $message:literal;)*) => {
        /// Those after which a look at the domains shows something else.
        pub(super) const EVENTS: &[DomainEvent] = &[$(DomainEvent { id: $id, message: $message },)*];

        /// Their names.
        #[cfg(test)]
        pub(super) const EVENT_NAMES: &[&str] = &[$(stringify!($name),)*];
    };
}

events! {
    LIFECYCLE = 0: 318;
    DEVICE_REMOVED = 15: 333;
    DEVICE_ADDED = 19: 354;
}

/// `REMOTE_AUTH_NONE`: whoever calls may.
pub(super) const AUTH_NONE: i32 = 0;

/// A structure: its members in libvirt's order.
macro_rules! structures {
    ($($(#[$doc:meta])* $visible:vis struct $name:ident { $($(#[$about:meta])* $shown:vis $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        $visible struct $name {
            $($(#[$about])* $shown $field: $type,)*
        }

        impl Pack for $name {
            fn pack(&self, to: &mut Writer) {
                $(self.$field.pack(to);)*
            }
        }

        impl Unpack for $name {
            const LEAST: usize = 0 $(+ <$type>::LEAST)*;
            fn unpack(from: &mut Reader<'_>) -> Result<Self, Malformed> {
                Ok(Self { $($field: <$type>::unpack(from)?,)* })
            }
        }
    )*};
}

structures! {
    /// `remote_nonnull_domain`.
    pub(super) struct RemoteDomain {
        /// libvirt's name of it.
        pub(super) name: String,
        /// Its UUID: libvirt finds it by this.
        pub(super) uuid: [u8; 16],
        /// The number of this start of it; -1: it is off.
        pub(super) id: i32,
    }

    /// `remote_nonnull_network`: part of errors.
    pub(super) struct RemoteNetwork {
        /// Its name.
        pub(super) name: String,
        /// Its UUID.
        pub(super) uuid: [u8; 16],
    }

    /// `remote_error`.
    pub(super) struct RemoteError {
        /// `virErrorNumber`.
        pub(super) code: i32,
        /// `virErrorDomain`.
        pub(super) domain: i32,
        /// Words.
        pub(super) message: Option<String>,
        /// `virErrorLevel`.
        pub(super) level: i32,
        /// Whom it concerns.
        pub(super) dom: Option<RemoteDomain>,
        /// More words, some of them those of the message.
        pub(super) strings: (Option<String>, Option<String>, Option<String>),
        /// More numbers.
        pub(super) numbers: (i32, i32),
        /// Whom it concerns.
        pub(super) net: Option<RemoteNetwork>,
    }

    /// `remote_domain_disk_error`.
    pub(crate) struct RemoteDiskError {
        /// The guest's name for the disk.
        pub(crate) disk: String,
        /// `virDomainDiskErrorCode`.
        pub(crate) error: i32,
    }

    /// `remote_typed_param`.
    pub(crate) struct TypedParam {
        /// Its name.
        pub(crate) field: String,
        /// Its value.
        pub(crate) value: TypedValue,
    }

    /// `remote_domain_stats_record`.
    pub(crate) struct DomainStatsRecord {
        /// Whose they are.
        pub(super) dom: RemoteDomain,
        /// The figures.
        pub(crate) params: Vec<TypedParam>,
    }

    /// `remote_node_get_info_ret`.
    pub(super) struct RemoteNodeInfo {
        /// The processor's architecture: 32 characters, each of which takes four bytes.
        pub(super) model: [u8; 128],
        /// Memory in KiB.
        pub(super) memory: u64,
        /// Processors, their MHz, NUMA nodes, sockets, cores and threads.
        pub(super) counts: ((i32, i32, i32), (i32, i32, i32)),
    }

    /// `remote_domain_get_job_info_ret`.
    pub(super) struct RemoteJobInfo {
        /// `virDomainJobType`.
        pub(super) kind: i32,
        /// Milliseconds since it began, and until it ends.
        pub(super) time: (u64, u64),
        /// Bytes in all, done, and to do.
        pub(super) data: (u64, u64, u64),
        /// Those of them that are memory.
        pub(super) mem: (u64, u64, u64),
        /// Those of them that are disks.
        pub(super) file: (u64, u64, u64),
    }
}

/// `remote_typed_param_value`. A fraction is kept as its bits: nothing here counts in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TypedValue {
    /// `VIR_TYPED_PARAM_INT`.
    Int(i32),
    /// `VIR_TYPED_PARAM_UINT`.
    Uint(u32),
    /// `VIR_TYPED_PARAM_LLONG`.
    Llong(i64),
    /// `VIR_TYPED_PARAM_ULLONG`.
    Ullong(u64),
    /// `VIR_TYPED_PARAM_DOUBLE`.
    Double(u64),
    /// `VIR_TYPED_PARAM_BOOLEAN`.
    Boolean(i32),
    /// `VIR_TYPED_PARAM_STRING`.
    String(String),
}

impl Pack for TypedValue {
    fn pack(&self, to: &mut Writer) {
        match self {
            Self::Int(value) => (1_i32, *value).pack(to),
            Self::Uint(value) => (2_i32, *value).pack(to),
            Self::Llong(value) => (3_i32, *value).pack(to),
            Self::Ullong(value) => (4_i32, *value).pack(to),
            Self::Double(value) => (5_i32, *value).pack(to),
            Self::Boolean(value) => (6_i32, *value).pack(to),
            Self::String(value) => {
                7_i32.pack(to);
                value.pack(to);
            }
        }
    }
}

impl Unpack for TypedValue {
    const LEAST: usize = 8;
    fn unpack(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        match i32::unpack(from)? {
            1 => Unpack::unpack(from).map(Self::Int),
            2 => Unpack::unpack(from).map(Self::Uint),
            3 => Unpack::unpack(from).map(Self::Llong),
            4 => Unpack::unpack(from).map(Self::Ullong),
            5 => Unpack::unpack(from).map(Self::Double),
            6 => Unpack::unpack(from).map(Self::Boolean),
            7 => Unpack::unpack(from).map(Self::String),
            other => Err(Malformed::Arm(other)),
        }
    }
}

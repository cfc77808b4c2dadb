//! The names of the figures of what is used, what each says, and by what it is told apart. No values.

use prometheus::proto::MetricType;

/// A metric: its name, what it says, and its labels.
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) kind: MetricType,
    pub(super) labels: &'static [&'static str],
}

macro_rules! families {
    ($($constant:ident $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(pub(super) const $constant: Family = Family {
            name: $name,
            help: $help,
            kind: MetricType::$kind,
            labels: &[$($label),*],
        };)*
        /// All of them.
        pub(super) const FAMILIES: &[Family] = &[$($constant),*];
    };
}

families! {
    INFO GAUGE "berth_agent_domain_info" ["instance_id", "name", "project"]
        "Always 1; the labels say what the owner of an instance that runs here calls it.";
    UNSHOWN GAUGE "berth_agent_domains_unshown" []
        "Domains of berth that have no series of their own, because there are too many.";

    CPU COUNTER "berth_agent_domain_cpu_seconds_total" ["instance_id"]
        "Processor time used by a domain since it was started, QEMU's own included.";
    CPU_CORES GAUGE "berth_agent_domain_cpu_cores" ["instance_id"]
        "How many processors a domain kept busy lately.";

    MEMORY_MAXIMUM GAUGE "berth_agent_domain_memory_maximum_bytes" ["instance_id"]
        "Memory that a domain may have.";
    MEMORY_BALLOON GAUGE "berth_agent_domain_memory_balloon_bytes" ["instance_id"]
        "Memory that the balloon leaves a domain.";
    MEMORY_RESIDENT GAUGE "berth_agent_domain_memory_resident_bytes" ["instance_id"]
        "The host's memory that a domain's QEMU takes.";
    GUEST_AVAILABLE GAUGE "berth_agent_domain_guest_memory_available_bytes" ["instance_id"]
        "Memory that the guest's kernel manages, where the guest tells.";
    GUEST_UNUSED GAUGE "berth_agent_domain_guest_memory_unused_bytes" ["instance_id"]
        "Memory that the guest leaves unused, where the guest tells.";
    GUEST_USABLE GAUGE "berth_agent_domain_guest_memory_usable_bytes" ["instance_id"]
        "Memory that the guest could give up without swapping, where the guest tells.";

    DISK_READ_BYTES COUNTER "berth_agent_domain_disk_read_bytes_total" ["instance_id", "disk"]
        "Bytes read from a disk since its domain was started.";
    DISK_READS COUNTER "berth_agent_domain_disk_read_requests_total" ["instance_id", "disk"]
        "Read requests to a disk since its domain was started.";
    DISK_WRITTEN_BYTES COUNTER "berth_agent_domain_disk_written_bytes_total" ["instance_id", "disk"]
        "Bytes written to a disk since its domain was started.";
    DISK_WRITES COUNTER "berth_agent_domain_disk_write_requests_total" ["instance_id", "disk"]
        "Write requests to a disk since its domain was started.";
    DISK_BYTES_RATE GAUGE "berth_agent_domain_disk_bytes_per_second" ["instance_id", "direction"]
        "Bytes per second from (read) and to (write) all disks of a domain lately.";
    DISK_REQUESTS_RATE GAUGE "berth_agent_domain_disk_requests_per_second" ["instance_id", "direction"]
        "Requests per second to all disks of a domain lately.";

    NIC_RECEIVED_BYTES COUNTER "berth_agent_domain_network_received_bytes_total" ["instance_id", "nic"]
        "Bytes a guest received on a NIC since its domain was started.";
    NIC_RECEIVED COUNTER "berth_agent_domain_network_received_packets_total" ["instance_id", "nic"]
        "Packets a guest received on a NIC since its domain was started.";
    NIC_RECEIVED_DROPS COUNTER "berth_agent_domain_network_received_drops_total" ["instance_id", "nic"]
        "Packets to a guest's NIC that were dropped since its domain was started.";
    NIC_SENT_BYTES COUNTER "berth_agent_domain_network_sent_bytes_total" ["instance_id", "nic"]
        "Bytes a guest sent on a NIC since its domain was started.";
    NIC_SENT COUNTER "berth_agent_domain_network_sent_packets_total" ["instance_id", "nic"]
        "Packets a guest sent on a NIC since its domain was started.";
    NIC_SENT_DROPS COUNTER "berth_agent_domain_network_sent_drops_total" ["instance_id", "nic"]
        "Packets from a guest's NIC that were dropped since its domain was started.";
    NIC_RECEIVED_ERRORS COUNTER "berth_agent_domain_network_received_errors_total" ["instance_id", "nic"]
        "Packets to a guest's NIC that were spoilt since its domain was started.";
    NIC_SENT_ERRORS COUNTER "berth_agent_domain_network_sent_errors_total" ["instance_id", "nic"]
        "Packets from a guest's NIC that were spoilt since its domain was started.";
    NIC_PORT GAUGE "berth_agent_domain_network_port_info" ["instance_id", "nic", "port_id"]
        "Which port a NIC is of, to join with: positions change when NICs are plugged in and out. Always 1.";
    NETWORK_BYTES_RATE GAUGE "berth_agent_domain_network_bytes_per_second" ["instance_id", "direction"]
        "Bytes per second that a guest received (receive) and sent (send) on all NICs lately.";
    NETWORK_PACKETS_RATE GAUGE "berth_agent_domain_network_packets_per_second" ["instance_id", "direction"]
        "Packets per second that a guest received and sent on all NICs lately.";

    PORT_DROPPED COUNTER "berth_port_dropped_packets_total" ["port_id", "instance_id", "reason"]
        "Packets of a port that the packet filter dropped since the port came to this host, by reason.";

    TUNNEL_DROPPED COUNTER "berth_agent_tunnel_dropped_packets_total" []
        "Packets for VXLANs of this host that the packet filter dropped, because no document names the host they came from.";

    PORT_FORGED COUNTER "berth_port_forged_metadata_requests_total" ["port_id", "instance_id"]
        "Requests of a port to the metadata service with headers that say who asks, since the service was started; the headers count for nothing.";

    FOREIGN GAUGE "berth_agent_foreign_domains_running" []
        "Running domains that are not berth's.";
    FOREIGN_BALLOON GAUGE "berth_agent_foreign_memory_balloon_bytes" []
        "Memory that the balloons leave all domains that are not berth's.";
    FOREIGN_RESIDENT GAUGE "berth_agent_foreign_memory_resident_bytes" []
        "The host's memory that all domains take that are not berth's.";
    FOREIGN_CPU COUNTER "berth_agent_foreign_cpu_seconds_total" []
        "Processor time used by all domains that are not berth's, since the agent looks.";
    FOREIGN_READ_BYTES COUNTER "berth_agent_foreign_disk_read_bytes_total" []
        "Bytes read by all domains that are not berth's, since the agent looks.";
    FOREIGN_READS COUNTER "berth_agent_foreign_disk_read_requests_total" []
        "Read requests of all domains that are not berth's, since the agent looks.";
    FOREIGN_WRITTEN_BYTES COUNTER "berth_agent_foreign_disk_written_bytes_total" []
        "Bytes written by all domains that are not berth's, since the agent looks.";
    FOREIGN_WRITES COUNTER "berth_agent_foreign_disk_write_requests_total" []
        "Write requests of all domains that are not berth's, since the agent looks.";
    FOREIGN_RECEIVED_BYTES COUNTER "berth_agent_foreign_network_received_bytes_total" []
        "Bytes received by all domains that are not berth's, since the agent looks.";
    FOREIGN_RECEIVED COUNTER "berth_agent_foreign_network_received_packets_total" []
        "Packets received by all domains that are not berth's, since the agent looks.";
    FOREIGN_RECEIVED_DROPS COUNTER "berth_agent_foreign_network_received_drops_total" []
        "Packets to all domains that are not berth's that were dropped, since the agent looks.";
    FOREIGN_SENT_BYTES COUNTER "berth_agent_foreign_network_sent_bytes_total" []
        "Bytes sent by all domains that are not berth's, since the agent looks.";
    FOREIGN_SENT COUNTER "berth_agent_foreign_network_sent_packets_total" []
        "Packets sent by all domains that are not berth's, since the agent looks.";
    FOREIGN_SENT_DROPS COUNTER "berth_agent_foreign_network_sent_drops_total" []
        "Packets from all domains that are not berth's that were dropped, since the agent looks.";

    POOL_CAPACITY GAUGE "berth_agent_pool_capacity_bytes" ["pool"]
        "Size of a storage pool: of the file system of local, which holds the disks as well, or of the volume group or thin pool.";
    POOL_USED GAUGE "berth_agent_pool_used_bytes" ["pool"]
        "Used space of a storage pool, whoever uses it.";
    POOL_PROVISIONED GAUGE "berth_agent_pool_provisioned_bytes" ["pool"]
        "Sum of the virtual sizes of all volumes that shall be in a storage pool, in local also of all disks.";
    POOL_METADATA GAUGE "berth_agent_pool_metadata_percent" ["pool"]
        "How full the tables of a thin pool are, in percent.";

    HOST_MEMORY GAUGE "berth_agent_host_memory_bytes" []
        "Memory of this host.";
    HOST_AVAILABLE GAUGE "berth_agent_host_memory_available_bytes" []
        "Memory of this host that could be had without swapping.";
    KSM_SHARED GAUGE "berth_agent_host_ksm_shared_bytes" []
        "Memory that is there once and stands for several equal pages.";
    KSM_SAVED GAUGE "berth_agent_host_ksm_saved_bytes" []
        "Memory that is saved by keeping equal pages once.";
    HUGE_PAGES GAUGE "berth_agent_host_huge_pages" ["page_bytes"]
        "Huge pages that the kernel has set aside, by their size in bytes.";
    HUGE_PAGES_FREE GAUGE "berth_agent_host_huge_pages_free" ["page_bytes"]
        "Huge pages that nobody uses, by their size in bytes.";
}

/// Where a NIC's traffic is told, by direction: bytes, packets, drops.
pub(super) const RECEIVED: [&Family; 3] = [&NIC_RECEIVED_BYTES, &NIC_RECEIVED, &NIC_RECEIVED_DROPS];
pub(super) const SENT: [&Family; 3] = [&NIC_SENT_BYTES, &NIC_SENT, &NIC_SENT_DROPS];
pub(super) const FOREIGN_RECEIVES: [&Family; 3] = [
    &FOREIGN_RECEIVED_BYTES,
    &FOREIGN_RECEIVED,
    &FOREIGN_RECEIVED_DROPS,
];
pub(super) const FOREIGN_SENDS: [&Family; 3] =
    [&FOREIGN_SENT_BYTES, &FOREIGN_SENT, &FOREIGN_SENT_DROPS];

//! What the kernel can that not every kernel can: tried for real, in a network namespace that vanishes with its thread.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use nix::sched::{CloneFlags, unshare};
use rtnetlink::{LinkBridge, LinkMessageBuilder, LinkVlan, LinkVxlan, new_connection};
use serde_json::{Value, json};

use crate::{
    act::{
        command::CommandError,
        net::{error::NetError, nft, nft_command::run},
    },
    decide::{filter::Stateful, network::uplink::Feature},
};

/// How often it is tried again while something is missing: modules can be loaded at any time.
const TRY_AGAIN: Duration = Duration::from_secs(60);

/// What the kernel can, as it was when it was tried last. The default: everything.
#[derive(Debug, Clone, Default)]
pub struct Features {
    lacks: Arc<RwLock<BTreeMap<Feature, String>>>,
}

impl Features {
    /// Tries the kernel. It blocks for a moment.
    #[must_use]
    pub fn of_this_kernel() -> Self {
        let features = Self::default();
        features.try_again();
        features
    }

    /// What is missing, and what would help.
    #[must_use]
    pub fn lacks(&self) -> BTreeMap<Feature, String> {
        let lacks = self.lacks.read().unwrap_or_else(PoisonError::into_inner);
        lacks.clone()
    }

    /// Whether the kernel can this.
    #[must_use]
    pub fn has(&self, feature: Feature) -> bool {
        !self.lacks().contains_key(&feature)
    }

    /// Those of a kernel that has all but these.
    #[cfg(test)]
    pub(crate) fn without(features: impl IntoIterator<Item = Feature>) -> Self {
        let lack = |feature| (feature, sentence(feature, "tried in vain"));
        Self {
            lacks: Arc::new(RwLock::new(features.into_iter().map(lack).collect())),
        }
    }

    fn try_again(&self) {
        let found = lacking();
        let mut lacks = self.lacks.write().unwrap_or_else(PoisonError::into_inner);
        for feature in lacks.keys().filter(|feature| !found.contains_key(feature)) {
            tracing::info!(?feature, "the kernel has it now");
        }
        *lacks = found;
    }

    /// Tries again what is missing, for ever.
    pub async fn keep_trying(self) {
        loop {
            tokio::time::sleep(TRY_AGAIN).await;
            if self.lacks().is_empty() {
                continue;
            }
            let again = self.clone();
            if tokio::task::spawn_blocking(move || again.try_again())
                .await
                .is_err()
            {
                tracing::error!("trying what the kernel can failed");
            }
        }
    }
}

/// What is missing, as sentences with what would help.
fn lacking() -> BTreeMap<Feature, String> {
    let tried = std::thread::Builder::new()
        .name("net-features".to_owned())
        .spawn(try_all);
    let result = tried
        .map_err(|error| format!("no thread: {error}"))
        .and_then(|thread| {
            let lost = |_| Err("the thread that tried it panicked".to_owned());
            thread.join().unwrap_or_else(lost)
        });
    result.unwrap_or_else(|reason| {
        ALL.iter()
            .map(|feature| (*feature, sentence(*feature, &reason)))
            .collect()
    })
}

const ALL: [Feature; 4] = [
    Feature::Vlan,
    Feature::Vxlan,
    Feature::Nat,
    Feature::StatefulFilter,
];

fn sentence(feature: Feature, reason: &str) -> String {
    let (what, fix) = match feature {
        Feature::Vlan => (
            "VLANs (802.1Q)",
            "modprobe 8021q, or a kernel built with CONFIG_VLAN_8021Q",
        ),
        Feature::Vxlan => (
            "VXLANs",
            "modprobe vxlan, or a kernel built with CONFIG_VXLAN",
        ),
        Feature::Nat => (
            "translation of addresses by nftables",
            "apt-get install nftables; modprobe nft_masq, or a kernel built with CONFIG_NFT_MASQ",
        ),
        Feature::StatefulFilter => (
            "connection tracking in bridges",
            "apt-get install nftables; modprobe nf_conntrack_bridge (or br_netfilter), or a kernel built with \
             CONFIG_NF_CONNTRACK_BRIDGE",
        ),
    };
    format!("this host's kernel does not do {what}: {reason}. What helps: {fix}")
}

fn try_all() -> Result<BTreeMap<Feature, String>, String> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| format!("no network namespace: {errno}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("no runtime: {error}"))?;
    runtime.block_on(async {
        let (connection, handle, _) =
            new_connection().map_err(|error| format!("no netlink socket: {error}"))?;
        let driver = tokio::spawn(connection);
        let made = async |link| {
            handle
                .link()
                .add(link)
                .execute()
                .await
                .map_err(|error| error.to_string())
        };
        let parent = made(
            LinkMessageBuilder::<LinkBridge>::new("bt-try")
                .index(PARENT)
                .build(),
        )
        .await;
        let vlan = match parent {
            Ok(()) => made(LinkVlan::new("bt-try-vlan", PARENT, 1).build()).await,
            Err(reason) => Err(reason),
        };
        let vxlan = made(LinkVxlan::new("bt-try-vxlan", 1).port(1).build()).await;
        driver.abort();
        let nat = try_rules(&nat()).await;
        let filter = match nft::stateful().await {
            Ok(Stateful::Bridge | Stateful::BrNetfilter) => Ok(()),
            Ok(Stateful::No) => {
                Err("it does not take rules that ask for the state of one".to_owned())
            }
            Err(error) => Err(reason(error)),
        };
        let tried = [
            (Feature::Vlan, vlan),
            (Feature::Vxlan, vxlan),
            (Feature::Nat, nat),
            (Feature::StatefulFilter, filter),
        ];
        Ok(tried
            .into_iter()
            .filter_map(|(feature, tried)| Some((feature, sentence(feature, &tried.err()?))))
            .collect())
    })
}

/// The index of the link that the others are made on.
const PARENT: u32 = 100;

/// Has nftables take rules, in this thread's namespace.
async fn try_rules(rules: &Value) -> Result<(), String> {
    run(rules, &[]).await.map(|_| ()).map_err(reason)
}

/// Why nft did not do it, in a line.
fn reason(error: NetError) -> String {
    match error {
        NetError::Command(CommandError::Failed { stderr, .. }) => {
            stderr.lines().next().unwrap_or("nft failed").to_owned()
        }
        error => error.to_string(),
    }
}

/// Rules that translate.
fn nat() -> Value {
    let table = json!({"family": "inet", "name": "try"});
    json!({"nftables": [
        {"add": {"table": table}},
        {"add": {"chain": {"family": "inet", "table": "try", "name": "out", "type": "nat", "hook": "postrouting",
                           "prio": 100, "policy": "accept"}}},
        {"add": {"rule": {"family": "inet", "table": "try", "chain": "out", "expr": [{"masquerade": null}]}}},
    ]})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_with_what_helps() {
        let text = sentence(Feature::Vlan, "Operation not supported");
        assert!(
            text.contains("802.1Q") && text.contains("modprobe 8021q"),
            "{text}"
        );
        assert!(Features::default().has(Feature::Vlan));
    }
}

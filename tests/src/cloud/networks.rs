//! Networks of a cloud: who is reached from outside, and their end.

use std::fmt::Display;

use berth_common::{
    message::{
        port::{PortDelete, PortList, PortListReply},
        request::{NetworkDelete, default_page},
        router::{
            FloatingIpDelete, FloatingIpList, RouterDelete, RouterList, RouterRemoveInterface,
        },
        view::PortView,
    },
    refusal::RefusalCode,
};

use super::{CALL_LIMIT, CONVERGE_LIMIT, GuestStatus, TestCloud};
use crate::wait::{Seen, wait_for};

impl TestCloud {
    /// Waits until the machine outside gets an answer at an address, from the guest with a name.
    ///
    /// # Errors
    /// It does not in time.
    pub async fn is_reached_from_outside(
        &self,
        address: impl Display,
        name: &str,
    ) -> anyhow::Result<()> {
        let outside = self.outside()?;
        let url = format!("http://{address}/cgi-bin/status");
        let what = format!("an answer of {name} at {address}, outside");
        let argv = ["curl", "-sS", "--fail", "--max-time", "2", &url];
        wait_for(&what, CONVERGE_LIMIT, async || {
            let status: GuestStatus = serde_json::from_str(&outside.text(&argv).await?)?;
            Ok(Seen::when(status.hostname == name, status))
        })
        .await
    }

    /// Waits until the machine outside gets no answer to ping at an address.
    ///
    /// # Errors
    /// It gets some for too long.
    pub async fn is_silent_outside(&self, address: impl Display) -> anyhow::Result<()> {
        let (outside, address) = (self.outside()?, address.to_string());
        let what = format!("silence of {address}, outside");
        let argv = ["ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", &address];
        wait_for(&what, CONVERGE_LIMIT, async || {
            let output = outside.exec(&argv).await?;
            Ok(Seen::when(!output.status.success(), "it answers"))
        })
        .await
    }

    /// All ports.
    ///
    /// # Errors
    /// No answer.
    pub async fn ports(&self) -> anyhow::Result<Vec<PortView>> {
        let mut all = Vec::new();
        loop {
            let page = PortList {
                project: None,
                network: None,
                instance: None,
                after: all.last().map(|port: &PortView| port.id),
                limit: default_page(),
            };
            let PortListReply { ports, more } = self.call(&page).await?;
            all.extend(ports);
            if !more {
                return Ok(all);
            }
        }
    }

    /// Deletes all floating IPs, routers, ports and networks, once no instance uses them.
    ///
    /// # Errors
    /// One is refused.
    pub(super) async fn delete_networks(&self) -> anyhow::Result<()> {
        for floating in self.call(&FloatingIpList::default()).await?.floating_ips {
            self.call(&FloatingIpDelete {
                floating_ip: floating.id.to_string(),
                project: floating.project,
            })
            .await?;
        }
        for router in self.call(&RouterList::default()).await?.routers {
            for leg in &router.interfaces {
                self.call(&RouterRemoveInterface {
                    router: router.id.to_string(),
                    project: router.project.clone(),
                    subnet: leg.subnet_id.to_string(),
                })
                .await?;
            }
            self.call(&RouterDelete {
                router: router.id.to_string(),
                project: router.project,
            })
            .await?;
        }
        for port in self.ports().await? {
            let request = PortDelete {
                port: port.id.to_string(),
                project: port.project,
            };
            // One that was made for its instance goes with it.
            match self.try_call(&request, CALL_LIMIT).await? {
                Err(refusal) if refusal.code != RefusalCode::NotFound => {
                    anyhow::bail!("port {} stays: {refusal}", port.id)
                }
                Ok(_) | Err(_) => {}
            }
        }
        for network in self.networks().await? {
            self.call(&NetworkDelete {
                network: network.id.to_string(),
                project: network.project,
            })
            .await?;
        }
        Ok(())
    }
}

//! Looks up the addresses of a web server and lets nobody connect to those that [`image_server`] refuses. There is no second
//! look-up between the judgement and the connection, so a name that means something else each time it is asked gains nothing.

use std::{collections::BTreeSet, io, net::IpAddr};

use ipnet::IpNet;
use ureq::{
    config::Config,
    http::Uri,
    unversioned::{
        resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver},
        transport::NextTimeout,
    },
};

use crate::decide::image_server::{self, Forbidden};

/// Names to addresses that an image may be fetched from.
#[derive(Debug)]
pub(super) struct Guard {
    resolver: DefaultResolver,
    /// What the operator allows besides.
    allowed: Vec<IpNet>,
}

impl Guard {
    pub(super) fn new(allowed: &[IpNet]) -> Self {
        Self {
            resolver: DefaultResolver::default(),
            allowed: allowed.to_vec(),
        }
    }
}

impl Resolver for Guard {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.resolver.resolve(uri, config, timeout)?;
        if is_proxy(uri, config) {
            return Ok(found);
        }
        let own = own_addresses()?;
        let mut good = self.empty();
        let mut refused = None;
        for address in found.iter() {
            match image_server::check(address.ip(), &own, &self.allowed) {
                Ok(()) => good.push(*address),
                Err(forbidden) => refused = refused.or(Some(forbidden)),
            }
        }
        match refused {
            Some(forbidden) if good.is_empty() => Err(ureq::Error::Other(Box::new(forbidden))),
            Some(_) | None => Ok(good),
        }
    }
}

/// Judges a URL that names an address instead of a host. Only a proxy needs this: it looks names up itself, and is asked for
/// addresses as they are.
pub(super) fn check_literal(
    url: &str,
    config: &Config,
    allowed: &[IpNet],
) -> io::Result<Result<(), Forbidden>> {
    if config.proxy().is_none() {
        return Ok(Ok(()));
    }
    let host = url.parse::<Uri>().ok().and_then(|uri| {
        let host = uri.host()?;
        host.trim_matches(['[', ']']).parse::<IpAddr>().ok()
    });
    match host {
        Some(address) => Ok(image_server::check(address, &own_addresses()?, allowed)),
        None => Ok(Ok(())),
    }
}

/// The proxy of the agent's environment is the operator's, wherever it is.
fn is_proxy(uri: &Uri, config: &Config) -> bool {
    config.proxy().is_some_and(|proxy| {
        let proxy = proxy.uri();
        (proxy.host(), proxy.port_u16()) == (uri.host(), uri.port_u16())
    })
}

/// Those of this host's interfaces just now.
fn own_addresses() -> io::Result<BTreeSet<IpAddr>> {
    let interfaces = nix::ifaddrs::getifaddrs()?;
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    });
    Ok(addresses.collect())
}

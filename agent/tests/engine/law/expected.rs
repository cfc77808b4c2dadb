//! How a host must be once what was wished is done, compared with the fake host's own state: never with what the agent says.

use std::collections::{BTreeMap, BTreeSet};

use berth_agent::{
    act::{
        Net, Storage,
        fake::{FakeDisk, FakeHost, FakeVolume},
    },
    decide::{
        domain::{DomainConfig, DomainDisk, OffReason},
        instance::{DiskName, domain_config},
        metadata, names,
    },
};
use berth_common::{document::VolumeAccess, ids::SnapshotId};

use super::{super::super::*, Becomes, Guest, Has, Label, VolumeSource, World, content_of, gb};

impl World {
    /// How the host must be once everything is done, if power failed so often meanwhile: each time a guest that was on is
    /// started once more than was wished. The error says what was done to the guest instead.
    pub(in super::super) fn expect(
        &mut self,
        becomes: Becomes,
        power_cuts: u32,
        host: &FakeHost,
    ) -> Result<(), String> {
        let found = host.lives(self.instance);
        let before = self.lives;
        let so_far = [
            found.starts - before.starts,
            found.saves - before.saves,
            found.restores - before.restores,
        ];
        let becomes = match power_cuts {
            1.. => self.after_power_cuts(becomes, power_cuts, so_far, host)?,
            0 if so_far != becomes.lives() => {
                return Err(format!(
                    "the guest was started, saved and restored {so_far:?} times instead of {:?}",
                    becomes.lives()
                ));
            }
            0 => {
                let untouched = (found.asked, found.destroys) == (before.asked, before.destroys);
                if becomes == Becomes::AsItWas && !untouched {
                    return Err(format!(
                        "the guest was asked to power off, or switched off: {found:?} after {before:?}"
                    ));
                }
                becomes
            }
        };
        self.lives = found;
        self.expect_guest(becomes);
        self.expect_disks();
        self.expect_contents();
        Ok(())
    }

    /// What becomes of the guest if power fails on the way. So often it was started, saved and restored.
    fn after_power_cuts(
        &self,
        becomes: Becomes,
        power_cuts: u32,
        [starts, saves, restores]: [u32; 3],
        host: &FakeHost,
    ) -> Result<Becomes, String> {
        let [mut most_starts, most_saves, most_restores] = becomes.lives();
        // What was off already stays so.
        if !matches!((&self.guest, becomes), (Guest::Off, Becomes::AsItWas)) {
            most_starts += power_cuts;
        }
        if starts > most_starts || saves > most_saves || restores > most_restores {
            return Err(format!(
                "the guest was started {starts}, saved {saves} and restored {restores} times over {power_cuts} power cuts"
            ));
        }
        let is_saved = || {
            let domain = host.domain(self.instance.as_uuid());
            domain.is_some_and(|domain| domain.off_reason == Some(OffReason::Saved))
        };
        Ok(match self.power() {
            None if matches!(self.guest, Guest::Absent) => Becomes::AsItWas,
            None => Becomes::Gone,
            Some(DesiredPower::Stopped) => Becomes::Off,
            Some(DesiredPower::Suspended) if !is_saved() => Becomes::Off,
            Some(DesiredPower::Suspended) => becomes,
            Some(DesiredPower::Running | DesiredPower::Paused) if starts > 0 => Becomes::Started,
            Some(DesiredPower::Running | DesiredPower::Paused) => becomes,
        })
    }

    fn config(&self) -> Option<DomainConfig> {
        let spec = self.spec.as_ref()?;
        Some(domain_config(self.instance, spec, &facts()))
    }

    fn expect_guest(&mut self, becomes: Becomes) {
        let before = std::mem::replace(&mut self.guest, Guest::Absent);
        let Some(config) = self.config() else {
            return;
        };
        let given = |has: Has| {
            let room = has.started.room;
            // It gets what there is room for, and gives nothing back.
            let most = |had: Vcpus, wanted: Vcpus| {
                if wanted <= room.vcpus {
                    had.max(wanted)
                } else {
                    had
                }
            };
            Has {
                vcpus: most(has.vcpus, config.vcpus),
                memory_mb: if config.memory_mb <= room.memory_mb {
                    has.memory_mb.max(config.memory_mb)
                } else {
                    has.memory_mb
                },
                kept: config.clone(),
                ..has
            }
        };
        let fresh = || Has {
            started: config.clone(),
            vcpus: config.vcpus,
            memory_mb: config.memory_mb,
            kept: config.clone(),
        };
        self.guest = match (becomes, before) {
            (Becomes::AsItWas, Guest::On(has)) => Guest::On(given(has)),
            (Becomes::AsItWas, Guest::Absent) => Guest::Off,
            (Becomes::AsItWas, before) => before,
            (Becomes::Started, _) => Guest::On(fresh()),
            (Becomes::Off | Becomes::AwakeAndOff | Becomes::Gone, _) => Guest::Off,
            (Becomes::Asleep, Guest::On(has)) => Guest::Asleep(has),
            (Becomes::Awake, Guest::Asleep(has)) => Guest::On(given(has)),
            (becomes, before) => panic!("{before:?} cannot become {becomes:?}"),
        };
    }

    /// The disks that the instance must have of its own: what is there stays, and what is not wished any more goes.
    fn expect_disks(&mut self) {
        let Some(spec) = &self.spec else {
            self.disks.clear();
            return;
        };
        let own = spec.disks.iter().map(|disk| {
            let DiskSource::Image(image) = &disk.source;
            let name = DiskName::Own {
                index: disk.index,
                incarnation: disk.incarnation,
            };
            (name, disk.size_gb, image)
        });
        let rescue = spec.rescue.iter().map(|rescue| {
            let size = rescue.size_gb.unwrap_or(spec.flavor.disk_gb);
            (DiskName::Rescue(rescue.nonce), size, &rescue.image)
        });
        let mut disks = BTreeMap::new();
        for (name, size, image) in own.chain(rescue) {
            let size = ByteCount::from_gb(size);
            let content = match self.disks.get(&name) {
                Some(disk) => disk.content.clone(),
                None => content_of(image),
            };
            disks.insert(name, FakeDisk { size, content });
        }
        self.disks = disks;
    }

    /// What is on volumes and snapshots that are there for the first time.
    fn expect_contents(&mut self) {
        loop {
            let volumes = self.volumes.values();
            let of_volumes: BTreeMap<VolumeId, String> = volumes
                .filter_map(|it| Some((it.id, it.content.clone()?)))
                .collect();
            let snapshots = self.snapshots.values();
            let of_snapshots: BTreeMap<SnapshotId, String> = snapshots
                .filter_map(|it| Some((it.id, it.content.clone()?)))
                .collect();
            let mut is_news = false;
            for volume in self.volumes.values_mut().filter(|it| it.content.is_none()) {
                volume.content = match &volume.source {
                    None => Some("zeros".to_owned()),
                    Some(VolumeSource::Image(image)) => Some(content_of(image)),
                    Some(VolumeSource::Volume(source)) => of_volumes.get(&source.id).cloned(),
                    Some(VolumeSource::Snapshot(source)) => of_snapshots.get(&source.id).cloned(),
                };
                is_news |= volume.content.is_some();
            }
            for snapshot in self.snapshots.values_mut() {
                if snapshot.content.is_none() {
                    snapshot.content = of_volumes.get(&snapshot.of.id).cloned();
                    is_news |= snapshot.content.is_some();
                }
            }
            if !is_news {
                return;
            }
        }
    }

    /// The guest writes to all it may write to, if it runs, and somebody else to what nobody has.
    pub(in super::super) fn work(&mut self, host: &FakeHost) {
        self.words += 1;
        let word = format!("word {}", self.words);
        let attached: Vec<Label> = self.volumes.keys().copied().collect();
        let attached: BTreeSet<Label> = attached
            .into_iter()
            .filter(|it| self.is_attached(it))
            .collect();
        for (label, volume) in &mut self.volumes {
            if let Some(content) = volume
                .content
                .as_mut()
                .filter(|_| !attached.contains(label))
            {
                host.write_volume(volume.id, &word);
                content.push_str(&format!(" + {word}"));
            }
        }
        let Some(config) = self.config().filter(|_| self.runs()) else {
            return;
        };
        for disk in config.disks {
            if disk.access == VolumeAccess::ReadOnly {
                continue;
            }
            host.guest_writes(self.instance, &disk.target, &word);
            let name = disk.path.file_name().and_then(|name| name.to_str());
            let own = name.and_then(DiskName::parse);
            let own = own.and_then(|name| self.disks.get_mut(&name));
            let content = match own {
                Some(own) => Some(&mut own.content),
                None => {
                    let id = facts().paths.volume_at(&disk.path);
                    let mut volumes = self.volumes.values_mut();
                    let volume = volumes.find(|volume| Some(volume.id) == id);
                    volume.and_then(|volume| volume.content.as_mut())
                }
            };
            content.unwrap().push_str(&format!(" + {word}"));
        }
    }

    /// Compares the host with what must be there; the error says what is not so.
    pub(in super::super) async fn check(&self, host: &FakeHost) -> Result<(), String> {
        self.check_leftovers(host)?;
        self.check_volumes(host)?;
        self.check_domain(host)?;
        let files = Storage::observe(host, self.instance).await.unwrap();
        equal("own disks", &host.disks(self.instance), &self.disks)?;
        if let Some(spec) = &self.spec {
            let incarnation = spec.disks.first().and_then(|disk| disk.incarnation);
            if spec.config_drive.is_some() {
                let drives = BTreeSet::from([incarnation]);
                equal("config drives", &files.config_drives, &drives)?;
            }
            if !spec.ports.is_empty() {
                let text = metadata::guest_text(self.instance, spec, &Default::default());
                equal("what the guest is told", &files.metadata, &Some(text))?;
            }
        }
        self.check_network(host).await
    }

    /// Nothing is there that was not wished.
    fn check_leftovers(&self, host: &FakeHost) -> Result<(), String> {
        let mut expected = BTreeSet::new();
        if self.spec.is_some() {
            expected.insert(format!("domain of instance {}", self.instance));
            expected.insert(format!("files of instance {}", self.instance));
        }
        if self.wire.is_some() {
            expected.insert(format!("network {}", self.network));
        }
        let volumes = self.volumes.values();
        expected.extend(volumes.map(|volume| format!("volume {}", volume.id)));
        let snapshots = self.snapshots.values();
        expected.extend(snapshots.map(|snapshot| format!("snapshot {}", snapshot.id)));
        let found: BTreeSet<String> = host.leftovers().into_iter().collect();
        equal("what is on the host", &found, &expected)
    }

    fn check_volumes(&self, host: &FakeHost) -> Result<(), String> {
        for (label, volume) in &self.volumes {
            let found = host.volume(volume.id);
            let found = found.ok_or_else(|| format!("{label} is not there"))?;
            let is_on = matches!(self.guest, Guest::On(_)) && self.is_attached(label);
            let tells = !self.is_rescued() && is_on;
            let expected = FakeVolume {
                pool: self.store.pool(),
                format: self.store.format(),
                size: gb(volume.gb),
                content: volume.content.clone().unwrap_or_default(),
                known: if tells { gb(volume.gb) } else { found.known },
                grown: false,
                active: true,
            };
            equal(label, &found, &expected)?;
        }
        for (label, snapshot) in &self.snapshots {
            let found = host.snapshot(snapshot.id);
            let found = found.ok_or_else(|| format!("{label} is not there"))?;
            let expected = FakeVolume {
                pool: self.store.pool(),
                format: facts().paths.snapshot_format(&self.store.pool()),
                size: gb(snapshot.gb),
                content: snapshot.content.clone().unwrap_or_default(),
                known: found.known,
                grown: false,
                active: facts().paths.holds_files(&self.store.pool()),
            };
            equal(label, &found, &expected)?;
        }
        Ok(())
    }

    fn check_domain(&self, host: &FakeHost) -> Result<(), String> {
        let Some(expected) = self.config() else {
            let there = host.domain(self.instance.as_uuid()).is_some();
            return equal("whether there is a domain", &there, &false);
        };
        let domain = host.domain(self.instance.as_uuid()).unwrap();
        let definition = host.definition(self.instance).unwrap();
        let is_paused = self.is_paused();
        let state = match &self.guest {
            Guest::On(_) if is_paused => (PowerState::Paused, None),
            Guest::On(_) => (PowerState::Running, None),
            Guest::Asleep(_) => (PowerState::Shutdown, Some(OffReason::Saved)),
            Guest::Off | Guest::Absent => {
                let is_saved = domain.off_reason == Some(OffReason::Saved);
                equal("whether memory is saved", &is_saved, &false)?;
                (PowerState::Shutdown, domain.off_reason)
            }
        };
        equal(
            "its state",
            &(domain.power_state, domain.off_reason),
            &state,
        )?;
        let is_half = (domain.leftover_memory, domain.is_starting);
        equal("what is half done", &is_half, &(false, false))?;
        // Of one that stands still, marks stay for when it goes on.
        let stands = is_paused || self.is_asleep();
        let document = self
            .told
            .values()
            .find(|it| it.key().kind == Kind::Instance && it.key().id == self.instance.as_uuid());
        let nonce = self.spec.as_ref().and_then(|spec| spec.reboot);
        let mut wanted = expected.clone();
        wanted.metadata.generation = document.unwrap().generation();
        wanted.metadata.reboot_nonce = nonce.map(|reboot| reboot.nonce);
        if stands {
            wanted.metadata.generation = definition.metadata.generation;
            wanted.metadata.reboot_nonce = definition.metadata.reboot_nonce;
        }
        // Why it is off is noted of what is off by itself, and of nothing that is on.
        let noted = definition.metadata.left_off;
        if self.is_left_off() {
            equal("whether it is noted", &noted.is_some(), &true)?;
        }
        if self.is_off() {
            wanted.metadata.left_off = noted;
        }
        equal("its definition", &definition, &wanted)?;
        match &self.guest {
            Guest::Absent | Guest::Off => {
                equal("what it has", &host.guest_has(self.instance), &None)
            }
            Guest::On(has) => self.check_guest(host, has, &expected),
            Guest::Asleep(has) => self.check_guest(host, has, &has.kept),
        }
    }

    /// What the guest has: the disks and NICs of one definition, and the rest as it was started, or given since.
    fn check_guest(
        &self,
        host: &FakeHost,
        has: &Has,
        devices: &DomainConfig,
    ) -> Result<(), String> {
        let found = host.guest_has(self.instance);
        let found = found.ok_or("it has nothing")?;
        let disks = |config: &DomainConfig| {
            let disks = config.disks.iter();
            let disks = disks.map(|disk| (disk.target.clone(), disk.clone()));
            disks.collect::<BTreeMap<String, DomainDisk>>()
        };
        equal("the guest's disks", &disks(&found), &disks(devices))?;
        let nics = |config: &DomainConfig| {
            let nics = config.nics.iter();
            nics.map(|nic| (nic.tap.clone(), nic.clone()))
                .collect::<BTreeMap<_, _>>()
        };
        equal("the guest's NICs", &nics(&found), &nics(devices))?;
        let size = (found.vcpus, found.memory_mb);
        equal("the guest's size", &size, &(has.vcpus, has.memory_mb))?;
        let rest = |config: &DomainConfig| (config.title.clone(), config.config_drive.clone());
        equal("how it was started", &rest(&found), &rest(&has.started))
    }

    async fn check_network(&self, host: &FakeHost) -> Result<(), String> {
        let Some(spec) = self.network_spec() else {
            return Ok(());
        };
        let observed = Net::observe(host, self.network).await.unwrap();
        equal(
            "whether there is a bridge",
            &observed.bridge.is_some(),
            &true,
        )?;
        let served = observed.dhcp.process.is_some() && observed.metadata.process.is_some();
        equal("whether the network is served", &served, &true)?;
        let is_on = matches!(self.guest, Guest::On(_));
        let taps = spec.ports.iter().filter(|_| is_on);
        let taps: BTreeSet<String> = taps.map(|port| names::tap(port.id)).collect();
        equal("taps in the bridge", &observed.members, &taps)?;
        for (position, port) in spec.ports.iter().enumerate().filter(|_| is_on) {
            let tap = observed.tc.taps.get(&names::tap(port.id));
            let copies = tap.map_or(0, |tap| tap.actions.len());
            let is_limited = self.is_limited() && position == 0;
            equal("copies", &copies, &if is_limited { 2 } else { 0 })?;
        }
        let limits = usize::from(self.is_limited() && is_on && !spec.ports.is_empty());
        equal("limits", &observed.tc.ifbs.len(), &limits)?;
        // Chains of ports end as their taps do.
        let chains = observed.filter.part.chains.keys();
        let chains = chains.filter_map(|(_, name)| name.strip_prefix("e_")?.split('_').nth(1));
        let filtered: BTreeSet<String> = chains.map(str::to_owned).collect();
        let ports = spec.ports.iter().filter(|_| self.is_secured());
        let taps: BTreeSet<String> = ports
            .map(|port| names::tap(port.id)[3..].to_owned())
            .collect();
        equal("ports that are filtered", &filtered, &taps)?;
        Ok(())
    }
}

fn equal<T: PartialEq + std::fmt::Debug>(
    what: &str,
    found: &T,
    expected: &T,
) -> Result<(), String> {
    if found == expected {
        Ok(())
    } else {
        Err(format!(
            "{what}: {found:#?} is there instead of {expected:#?}"
        ))
    }
}

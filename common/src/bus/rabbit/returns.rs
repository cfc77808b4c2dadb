//! Which of the publishes of one channel reached no queue. Pure.
//!
//! The broker returns a message that no queue takes, and confirms it afterwards. Both frames come in the
//! order of the publishes; confirms of other messages, which queues delay, come in any order between
//! them, and one frame may confirm many. The library keeps the returned messages in line, and each confirm
//! that it handles, whichever it is, takes the first in line along:
//!
//! ```text
//!  broker    return 4   return 6   ack 5      ack 4, 6
//!  library   [4]        [4 6]      5 + "4"    6 + "6", 4
//! ```
//!
//! So a returned message says which one it is only by its tag, and may come along with the confirm of another,
//! before its own or a moment later:
//!
//! - A confirm that came alone found nobody in line. If its message was returned, that return was taken along by
//!   a confirm before it. When all confirms so far have been looked at, it is decided.
//! - A confirm that took another's return along says nothing about its own message, whose return may still be in
//!   line. It is decided when its own return is seen; or when nothing on the channel waits for a confirm, because
//!   as many have then left the line as have entered it; or at a fence: the answer to any call made after the
//!   confirm, because each frame that confirms returned messages empties the line of them.
//!
//! Should the library once give each return to its own confirm, all this still holds.

use std::collections::HashMap;

/// What the broker says of a publish, be it routed or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    Ack,
    Nack,
}

/// How a publish ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Taken,
    Unroutable,
    Refused,
}

/// A return of a message that waits for no decision: the books and the broker disagree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stranger;

#[derive(Debug, Default)]
struct Open {
    reply: Option<Reply>,
    returned: bool,
}

/// The books of one channel.
#[derive(Debug, Default)]
pub(super) struct Returns {
    /// Publishes without a verdict.
    open: HashMap<u64, Open>,
    /// How many of them have no confirm either.
    unconfirmed: usize,
    /// Ready for a verdict as soon as all confirms so far have been looked at.
    ready: Vec<u64>,
    /// Confirmed along with another's return: for the next fence.
    doubtful: Vec<u64>,
    /// For the fence that is under way, if one is.
    fenced: Option<Vec<u64>>,
}

impl Returns {
    /// A publish was sent, under a tag that no other has.
    pub(super) fn sent(&mut self, tag: u64) {
        self.open.insert(tag, Open::default());
        self.unconfirmed += 1;
    }

    /// A publish was confirmed, and this return came along.
    pub(super) fn confirmed(
        &mut self,
        tag: u64,
        reply: Reply,
        along: Option<u64>,
    ) -> Result<(), Stranger> {
        if let Some(returned) = along {
            let open = self.open.get_mut(&returned).ok_or(Stranger)?;
            open.returned = true;
            if open.reply.is_some() {
                self.ready.push(returned);
            }
        }
        let open = self.open.get_mut(&tag).ok_or(Stranger)?;
        if open.reply.replace(reply).is_none() {
            self.unconfirmed = self.unconfirmed.saturating_sub(1);
        }
        if along.is_none() || open.returned {
            self.ready.push(tag);
        } else {
            self.doubtful.push(tag);
        }
        Ok(())
    }

    /// Whether a fence has to be sent. It is then under way.
    pub(super) fn send_fence(&mut self) -> bool {
        self.doubtful.retain(|tag| self.open.contains_key(tag));
        let send = self.fenced.is_none() && !self.doubtful.is_empty();
        if send {
            self.fenced = Some(std::mem::take(&mut self.doubtful));
        }
        send
    }

    /// The fence was answered.
    pub(super) fn fence_passed(&mut self) {
        self.ready.extend(self.fenced.take().unwrap_or_default());
    }

    /// The verdicts of the moment. To be asked when every confirm that came so far was noted, and before a
    /// fence is sent.
    pub(super) fn verdicts(&mut self) -> Vec<(u64, Verdict)> {
        let mut ready = std::mem::take(&mut self.ready);
        if self.unconfirmed == 0 {
            ready.append(&mut self.doubtful);
            ready.append(self.fenced.as_mut().unwrap_or(&mut Vec::new()));
        }
        ready
            .into_iter()
            .filter_map(|tag| Some((tag, verdict(&self.open.remove(&tag)?))))
            .collect()
    }
}

fn verdict(open: &Open) -> Verdict {
    match (open.returned, open.reply) {
        (true, _) => Verdict::Unroutable,
        (false, Some(Reply::Ack)) => Verdict::Taken,
        (false, Some(Reply::Nack) | None) => Verdict::Refused,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use proptest::prelude::*;

    use super::*;

    /// What the broker makes of one publish.
    #[derive(Debug, Clone, Copy)]
    enum Fate {
        Unroutable,
        /// Confirmed after so many further steps.
        Routed(usize, Reply),
    }

    fn fate() -> impl Strategy<Value = Fate> {
        prop_oneof![
            Just(Fate::Unroutable),
            (
                0_usize..12,
                prop_oneof![9 => Just(Reply::Ack), 1 => Just(Reply::Nack)]
            )
                .prop_map(|(late, reply)| Fate::Routed(late, reply)),
        ]
    }

    /// One confirm as the library hands it out.
    type Confirm = (u64, Reply, Option<u64>);

    /// The library: confirms take the first return in line along.
    #[derive(Default)]
    struct Library {
        line: VecDeque<u64>,
        out: VecDeque<Confirm>,
    }

    impl Library {
        fn frame(&mut self, confirmed: impl IntoIterator<Item = (u64, Reply)>) {
            for (tag, reply) in confirmed {
                let along = self.line.pop_front();
                self.out.push_back((tag, reply, along));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Publishes of every fate; acks alone or many in a frame, in any order within it; the reader sees what came
        /// in pieces of any size, cutting through frames.
        #[test]
        fn each_publish_gets_its_own_verdict(
            fates in prop::collection::vec(fate(), 1..40),
            // Steps between coalesced confirms, how a frame is shuffled, how much the reader sees at a time.
            coalesce in 1_usize..6,
            shuffle in any::<u64>(),
            looks in prop::collection::vec(0_usize..6, 40),
        ) {
            let mut books = Returns::default();
            let mut library = Library::default();
            let mut verdicts = BTreeMap::new();
            let mut looks = looks.into_iter().cycle();
            // Fences are answered after what the library had handled when they were sent.
            let mut fence: Option<usize> = None;
            let mut confirmable: Vec<(u64, Reply)> = Vec::new();
            let mut late: Vec<(usize, u64, Reply)> = Vec::new();
            let mut random = shuffle;
            let mut next_random = move || {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                usize::try_from(random >> 40).unwrap()
            };
            let steps = fates.len() + 20;
            for step in 0..steps {
                if let Some(fate) = fates.get(step) {
                    let tag = u64::try_from(step).unwrap();
                    books.sent(tag);
                    match *fate {
                        Fate::Unroutable => {
                            library.line.push_back(tag);
                            confirmable.push((tag, Reply::Ack));
                        }
                        Fate::Routed(steps, reply) => late.push((step + steps, tag, reply)),
                    }
                }
                late.retain(|&(due, tag, reply)| {
                    if due <= step {
                        confirmable.push((tag, reply));
                    }
                    due > step
                });
                if step % coalesce == 0 || step + 1 == steps {
                    let mut frame = std::mem::take(&mut confirmable);
                    if next_random() % 2 == 0 {
                        // `multiple`: one frame, in any order.
                        for at in (1..frame.len()).rev() {
                            frame.swap(at, next_random() % (at + 1));
                        }
                    } else {
                        frame.sort_by_key(|(tag, _)| *tag);
                    }
                    library.frame(frame);
                }
                let most = if step + 1 == steps { usize::MAX } else { looks.next().unwrap() };
                let mut seen = 0;
                while seen < most && let Some((tag, reply, along)) = library.out.pop_front() {
                    seen += 1;
                    books.confirmed(tag, reply, along).unwrap();
                    fence = fence.map(|left| left.saturating_sub(1));
                }
                if fence == Some(0) {
                    fence = None;
                    books.fence_passed();
                }
                verdicts.extend(books.verdicts());
                if books.send_fence() {
                    fence = Some(library.out.len());
                }
            }
            for (tag, fate) in fates.iter().enumerate() {
                let right = match fate {
                    Fate::Unroutable => Verdict::Unroutable,
                    Fate::Routed(_, Reply::Ack) => Verdict::Taken,
                    Fate::Routed(_, Reply::Nack) => Verdict::Refused,
                };
                prop_assert_eq!(verdicts.get(&u64::try_from(tag).unwrap()), Some(&right), "{}", tag);
            }
            prop_assert!(books.open.is_empty());
        }
    }

    #[test]
    fn a_confirm_with_anothers_return_waits_for_a_fence() {
        let mut books = Returns::default();
        for tag in 1..=4 {
            books.sent(tag);
        }
        // 1 and 2 are returned, 3 is taken and confirmed first.
        books.confirmed(3, Reply::Ack, Some(1)).unwrap();
        assert_eq!(books.verdicts(), []);
        assert!(books.send_fence());
        assert!(!books.send_fence(), "one at a time");
        books.confirmed(2, Reply::Ack, Some(2)).unwrap();
        books.confirmed(1, Reply::Ack, None).unwrap();
        assert_eq!(
            books.verdicts(),
            [(2, Verdict::Unroutable), (1, Verdict::Unroutable)]
        );
        books.fence_passed();
        assert_eq!(books.verdicts(), [(3, Verdict::Taken)]);
        // The last one needs no fence.
        books.confirmed(4, Reply::Nack, None).unwrap();
        assert_eq!(books.verdicts(), [(4, Verdict::Refused)]);
    }

    #[test]
    fn a_return_of_nobody_is_noticed() {
        let mut books = Returns::default();
        books.sent(1);
        assert_eq!(books.confirmed(1, Reply::Ack, Some(7)), Err(Stranger));
        assert_eq!(books.confirmed(2, Reply::Ack, None), Err(Stranger));
    }
}

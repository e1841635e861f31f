//! The callers that wait for an acknowledgement: a slab whose tickets travel through the native client as one word.
//!
//! A slot outlives its caller: if the caller goes away first, the slot is freed when the native client answers. A
//! ticket carries the slot's generation, so a late answer never reaches the slot's next user.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use crate::lifecycle::Wake;

/// The word that travels with a record: generation above, index below.
pub(super) type Ticket = usize;

const INDEX_BITS: u32 = 32;
const _: () = assert!(
    usize::BITS >= 64,
    "a ticket holds a generation and an index of 32 bits each"
);

/// Slots for at most `max` answers of type `T`.
pub(super) struct Slots<T> {
    table: Mutex<Table<T>>,
    max: usize,
}

struct Table<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    bytes: usize,
}

struct Slot<T> {
    generation: u32,
    bytes: usize,
    state: State<T>,
}

enum State<T> {
    Free,
    /// Sent; the caller waits, or is about to.
    Waiting(Option<Wake>),
    /// Answered; the caller has not looked yet.
    Answered(T),
    /// Sent; the caller has gone.
    Left,
}

impl<T> Slots<T> {
    /// Makes slots for `max` answers at the same time.
    pub(super) fn new(max: usize) -> Self {
        let table = Table {
            slots: Vec::new(),
            free: Vec::new(),
            bytes: 0,
        };
        Self {
            table: Mutex::new(table),
            max,
        }
    }

    /// Takes a slot for a record of `bytes`; `None` when all are taken.
    pub(super) fn reserve(&self, bytes: usize) -> Option<Ticket> {
        let mut table = self.lock();
        let index = match table.free.pop() {
            Some(index) => index,
            None if table.slots.len() < self.max => {
                table.slots.push(Slot {
                    generation: 0,
                    bytes: 0,
                    state: State::Free,
                });
                u32::try_from(table.slots.len() - 1).ok()?
            }
            None => return None,
        };
        table.bytes += bytes;
        let slot = table.slots.get_mut(index as usize)?;
        slot.bytes = bytes;
        slot.state = State::Waiting(None);
        Some(((slot.generation as usize) << INDEX_BITS) | index as usize)
    }

    /// Gives back a slot whose record was never sent.
    pub(super) fn release(&self, ticket: Ticket) {
        self.lock().free(ticket);
    }

    /// Answers, and wakes the caller. False for a ticket that is no longer valid.
    pub(super) fn answer(&self, ticket: Ticket, answer: T) -> bool {
        let mut table = self.lock();
        let Some(slot) = table.slot(ticket) else {
            return false;
        };
        let wake = match &mut slot.state {
            State::Waiting(wake) => {
                let wake = wake.take();
                slot.state = State::Answered(answer);
                wake
            }
            State::Left => {
                table.free(ticket);
                None
            }
            State::Free | State::Answered(_) => return false,
        };
        drop(table);
        if let Some(wake) = wake {
            wake.wake();
        }
        true
    }

    /// Answers every record that is still out, for a native client that is gone.
    pub(super) fn answer_all(&self, answer: impl Fn() -> T) {
        for ticket in self.out() {
            self.answer(ticket, answer());
        }
    }

    /// A future of the ticket's answer. If it is dropped early, the slot stays taken until the answer comes.
    pub(super) fn wait(self: &Arc<Self>, ticket: Ticket) -> Wait<T> {
        Wait {
            slots: Arc::clone(self),
            ticket: Some(ticket),
        }
    }

    /// Records sent and not answered, or answered and not looked at.
    pub(super) fn taken(&self) -> usize {
        let table = self.lock();
        table.slots.len() - table.free.len()
    }

    /// Their bytes.
    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    fn out(&self) -> Vec<Ticket> {
        let table = self.lock();
        let out = |slot: &Slot<T>| matches!(slot.state, State::Waiting(_) | State::Left);
        let ticket =
            |(index, slot): (usize, &Slot<T>)| ((slot.generation as usize) << INDEX_BITS) | index;
        table
            .slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| out(slot))
            .map(ticket)
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Table<T>> {
        // Nothing in here can panic halfway through a change.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Table<T> {
    fn slot(&mut self, ticket: Ticket) -> Option<&mut Slot<T>> {
        let slot = self.slots.get_mut(ticket & u32::MAX as usize)?;
        (slot.generation as usize == ticket >> INDEX_BITS).then_some(slot)
    }

    fn free(&mut self, ticket: Ticket) -> Option<State<T>> {
        let slot = self.slot(ticket)?;
        let state = std::mem::replace(&mut slot.state, State::Free);
        slot.generation = slot.generation.wrapping_add(1);
        let bytes = std::mem::take(&mut slot.bytes);
        self.bytes -= bytes;
        self.free.push((ticket & u32::MAX as usize) as u32);
        Some(state)
    }
}

/// Resolves to the answer.
pub(super) struct Wait<T> {
    slots: Arc<Slots<T>>,
    /// `None` once the answer was taken.
    ticket: Option<Ticket>,
}

impl<T> Future for Wait<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let Some(ticket) = self.ticket else {
            return Poll::Pending;
        };
        let mut table = self.slots.lock();
        match table.slot(ticket).map(|slot| &mut slot.state) {
            Some(State::Waiting(wake)) => {
                match wake {
                    Some(wake) => wake.renew(cx),
                    None => *wake = Some(Wake::of(cx)),
                }
                return Poll::Pending;
            }
            Some(State::Answered(_)) => {}
            // Only this future frees an answered slot, so there is nothing else to find here.
            _ => return Poll::Pending,
        }
        let Some(State::Answered(answer)) = table.free(ticket) else {
            return Poll::Pending;
        };
        drop(table);
        self.ticket = None;
        Poll::Ready(answer)
    }
}

impl<T> Drop for Wait<T> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let mut table = self.slots.lock();
        match table.slot(ticket).map(|slot| &mut slot.state) {
            Some(state @ State::Waiting(_)) => *state = State::Left,
            Some(State::Answered(_)) => {
                table.free(ticket);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slot_outlives_its_caller_and_a_late_answer_never_reaches_the_next() {
        let slots = Arc::new(Slots::new(1));
        let first = slots.reserve(10).expect("a free slot");
        drop(slots.wait(first));
        assert_eq!(slots.reserve(10), None, "the record is still out");
        assert!(slots.answer(first, "late"));
        assert_eq!((slots.taken(), slots.bytes()), (0, 0));

        let second = slots.reserve(5).expect("the slot is free again");
        assert!(
            !slots.answer(first, "later still"),
            "the old ticket is void"
        );
        assert!(slots.answer(second, "mine"));
        assert_eq!(slots.wait(second).await, "mine");
        assert_eq!((slots.taken(), slots.bytes()), (0, 0));
    }

    #[tokio::test]
    async fn every_caller_is_answered_when_the_native_client_is_gone() {
        let slots = Arc::new(Slots::new(3));
        let tickets = [1, 2, 3].map(|bytes| slots.reserve(bytes).expect("a free slot"));
        let [one, two, three] = tickets.map(|ticket| slots.wait(ticket));
        drop(three);
        slots.answer_all(|| "gone");
        assert_eq!((one.await, two.await), ("gone", "gone"));
        assert_eq!((slots.taken(), slots.bytes()), (0, 0));
    }
}

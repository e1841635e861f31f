//! Wakes that come from other threads, in batches.
//!
//! For each task that another thread wakes, tokio makes a system call to its runtime's own thread, even if that is awake.
//! One acknowledgement of the broker, or one fdatasync, answers many calls at once; so their wakes go to the inbox of the
//! worker that they wait on, and only the first into an empty inbox makes that call.

use std::cell::OnceCell;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

thread_local! {
    static INBOX: OnceCell<Arc<Inbox>> = const { OnceCell::new() };
}

/// How to wake a task from another thread.
#[derive(Debug)]
pub struct Wake {
    waker: Waker,
    /// Of the worker that polled the task; absent on every other thread.
    inbox: Option<Arc<Inbox>>,
}

impl Wake {
    /// Wakes the task that is polled here.
    pub fn of(context: &Context<'_>) -> Self {
        Self {
            waker: context.waker().clone(),
            inbox: INBOX.with(|inbox| inbox.get().cloned()),
        }
    }

    /// The same for a task that was polled again.
    pub fn renew(&mut self, context: &Context<'_>) {
        if !self.waker.will_wake(context.waker()) {
            *self = Self::of(context);
        }
    }

    /// Wakes the task. No lock may be held: without an inbox, the waker may run anything.
    pub fn wake(self) {
        match self.inbox {
            Some(inbox) => inbox.put(self.waker),
            None => self.waker.wake(),
        }
    }
}

#[derive(Debug, Default)]
struct Inbox(Mutex<Wakes>);

#[derive(Debug, Default)]
struct Wakes {
    waiting: Vec<Waker>,
    /// The task that empties the inbox; absent once it is woken.
    reader: Option<Waker>,
}

impl Inbox {
    fn put(&self, waker: Waker) {
        let mut wakes = self.lock();
        wakes.waiting.push(waker);
        let reader = wakes.reader.take();
        drop(wakes);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Empties itself into `into`, and has `context` woken by the next wake.
    fn take(&self, into: &mut Vec<Waker>, context: &Context<'_>) {
        let mut wakes = self.lock();
        std::mem::swap(&mut wakes.waiting, into);
        wakes.reader = Some(context.waker().clone());
    }

    fn lock(&self) -> MutexGuard<'_, Wakes> {
        // Nothing in here can panic halfway through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives this thread an inbox, and returns what empties it: a task of this thread's runtime, which never ends.
pub(super) fn inbox() -> impl Future<Output = ()> {
    let inbox = INBOX.with(|inbox| Arc::clone(inbox.get_or_init(Arc::default)));
    let mut wakers = Vec::new();
    poll_fn(move |context| {
        inbox.take(&mut wakers, context);
        // On its own thread a wake is a place in the queue, and no system call.
        wakers.drain(..).for_each(Waker::wake);
        Poll::Pending
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake as CountedWake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl CountedWake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Count {
        fn get(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn many_wakes_from_another_thread_wake_the_worker_once_and_every_task() {
        // A thread of its own: an inbox stays with its thread.
        let test = std::thread::spawn(|| {
            let (worker, task) = (Arc::new(Count::default()), Arc::new(Count::default()));
            let (reader, waker) = (Arc::clone(&worker).into(), Arc::clone(&task).into());
            let (mut reader, task_context) =
                (Context::from_waker(&reader), Context::from_waker(&waker));
            let mut inbox = std::pin::pin!(inbox());
            for round in 1..=2 {
                assert!(inbox.as_mut().poll(&mut reader).is_pending());
                let wakes: Vec<_> = (0..10).map(|_| Wake::of(&task_context)).collect();
                let other = std::thread::spawn(|| wakes.into_iter().for_each(Wake::wake));
                other.join().expect("the other thread wakes");
                assert_eq!((worker.get(), task.get()), (round, 10 * (round - 1)));
                assert!(inbox.as_mut().poll(&mut reader).is_pending());
                assert_eq!((worker.get(), task.get()), (round, 10 * round));
            }
        });
        test.join().expect("the test passes");
    }

    #[test]
    fn a_task_of_a_thread_without_an_inbox_is_woken_at_once() {
        let task = Arc::new(Count::default());
        let waker = Arc::clone(&task).into();
        Wake::of(&Context::from_waker(&waker)).wake();
        assert_eq!(task.get(), 1);
    }
}

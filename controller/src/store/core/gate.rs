//! Whose turn it is to write.
//!
//! One writer, three queues. What somebody waits for goes first, but never for ever: after [`PATIENCE`] turns that
//! overtook it, the next lower queue gets one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

/// How urgent a write is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A client waits for it: a launch, a cancel, an edit.
    Intent,
    /// The controller's own notes: job states, units, nodes.
    Bookkeeping,
    /// Much at once, cut into short transactions: imports, clean-up.
    Bulk,
}

/// Turns in a row that may overtake a waiting lower class.
const PATIENCE: u32 = 16;

/// Hands out the turn. The queues grow with the requests in flight, which the servers bound.
#[derive(Clone, Default)]
pub(super) struct Gate(Arc<Mutex<Queues>>);

#[derive(Default)]
struct Queues {
    taken: bool,
    waiting: [VecDeque<oneshot::Sender<Turn>>; 3],
    /// Turns that overtook each class since it last had one.
    overtaken: [u32; 3],
}

/// The right to write, until dropped.
pub(super) struct Turn(Option<Gate>);

impl Gate {
    /// Waits for the turn. Dropping the future gives the place up.
    pub(super) async fn turn(&self, class: Class) -> Turn {
        let waiting = {
            let mut queues = self.lock();
            if !queues.taken {
                queues.taken = true;
                return Turn(Some(self.clone()));
            }
            let (tell, told) = oneshot::channel();
            queues.waiting[class as usize].push_back(tell);
            told
        };
        waiting.await.expect("the queue drops a sender only with the gate, which this future borrows")
    }

    fn release(&self) {
        loop {
            let next = {
                let mut queues = self.lock();
                match queues.next() {
                    Some(next) => next,
                    None => {
                        queues.taken = false;
                        return;
                    }
                }
            };
            // Whoever gave up waiting hands the turn back here; disarmed, for the loop passes it on.
            match next.send(Turn(Some(self.clone()))) {
                Ok(()) => return,
                Err(mut turn) => turn.0 = None,
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queues> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queues {
    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        let first = (0..3).find(|&class| !self.waiting[class].is_empty())?;
        let starving = (first + 1..3)
            .find(|&class| !self.waiting[class].is_empty() && self.overtaken[class] >= PATIENCE);
        let chosen = starving.unwrap_or(first);
        self.overtaken[chosen] = 0;
        for class in chosen + 1..3 {
            if !self.waiting[class].is_empty() {
                self.overtaken[class] += 1;
            }
        }
        self.waiting[chosen].pop_front()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(gate) = self.0.take() {
            gate.release();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Queues one waiter per entry, in this order, and says in which order they had their turns.
    async fn order(classes: &[Class]) -> Vec<usize> {
        let gate = Gate::default();
        let first = gate.turn(Class::Bulk).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for (number, &class) in classes.iter().enumerate() {
            let (gate, order) = (gate.clone(), order.clone());
            tasks.push(tokio::spawn(async move {
                let _turn = gate.turn(class).await;
                order.lock().unwrap().push(number);
            }));
            // The spawned task must stand in its queue before the next one is spawned.
            tokio::task::yield_now().await;
        }
        drop(first);
        for task in tasks {
            task.await.unwrap();
        }
        order.lock().unwrap().clone()
    }

    #[tokio::test]
    async fn intents_overtake_bookkeeping_and_bulk() {
        use Class::{Bookkeeping, Bulk, Intent};
        assert_eq!(order(&[Bulk, Bookkeeping, Intent, Bulk, Intent]).await, [2, 4, 1, 0, 3]);
    }

    #[tokio::test]
    async fn bulk_is_overtaken_a_bounded_number_of_times() {
        let mut classes = vec![Class::Bulk];
        classes.extend([Class::Intent; 40]);
        let place = order(&classes).await.iter().position(|&number| number == 0).unwrap();
        assert_eq!(place, PATIENCE as usize);
    }

    #[tokio::test]
    async fn a_waiter_that_gave_up_does_not_keep_the_turn() {
        let gate = Gate::default();
        let first = gate.turn(Class::Intent).await;
        let mut gone = Box::pin(gate.turn(Class::Intent));
        assert!(futures_util::poll!(&mut gone).is_pending());
        drop(gone);
        drop(first);
        drop(gate.turn(Class::Bulk).await);
        assert!(!gate.lock().taken);
    }
}

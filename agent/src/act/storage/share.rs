//! One download for everybody who waits for the same image.
//!
//! Waiters of one document's image share a future, so they share its outcome, good or bad. Downloads of the same
//! content from different places run one after the other: the second one usually finds the work done. When the last
//! waiter goes away the download stops.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use berth_common::{document::ImageRef, names::ImageSha256};
use futures::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use tokio::sync::{Mutex as AsyncMutex, Semaphore, watch};

use super::{
    Inner, cache, convert,
    evict::touch,
    fault::StorageFault,
    fetch::{self, Stage},
    source::for_people,
};
use crate::act::{Progress, threads};

type Outcome = Result<(), Arc<StorageFault>>;
type Download = BoxFuture<'static, Outcome>;

/// The downloads that run, and the bound on them.
#[derive(Debug)]
pub(super) struct Downloads {
    places: Arc<Semaphore>,
    running: Mutex<Running>,
}

/// Who waits for what. Entries of downloads that ended are dropped whenever something is added.
#[derive(Debug, Default)]
struct Running {
    downloads: HashMap<ImageRef, (WeakShared<Download>, watch::Receiver<Stage>)>,
    contents: HashMap<ImageSha256, Weak<AsyncMutex<()>>>,
}

impl Downloads {
    pub(super) fn new(parallel: usize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(parallel.max(1))),
            running: Mutex::default(),
        }
    }

    /// Fetches an image, or waits for the download of it that runs already.
    pub(super) async fn fetch(
        &self,
        inner: &Arc<Inner>,
        image: &ImageRef,
        progress: &Progress,
    ) -> Outcome {
        if is_cached(inner, image).await.map_err(Arc::new)? {
            return Ok(());
        }
        let (mut download, mut stage) = self.join(inner, image);
        let tell = |stage: &mut watch::Receiver<Stage>| {
            let text = stage.borrow_and_update().text();
            progress.send_replace(Some(text));
        };
        let mut told_last = false;
        let outcome = loop {
            tokio::select! {
                biased;
                outcome = &mut download => break outcome,
                changed = stage.changed(), if !told_last => match changed {
                    Ok(()) => tell(&mut stage),
                    Err(_) => told_last = true,
                },
            }
        };
        progress.send_replace(None);
        outcome
    }

    /// The running download of an image, or a new one.
    fn join(
        &self,
        inner: &Arc<Inner>,
        image: &ImageRef,
    ) -> (Shared<Download>, watch::Receiver<Stage>) {
        // The maps are whole after every operation, so a panic elsewhere cannot have broken them.
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((download, stage)) = running.downloads.get(image)
            && let Some(download) = download
                .upgrade()
                .filter(|download| download.peek().is_none())
        {
            return (download, stage.clone());
        }
        running
            .downloads
            .retain(|_, (download, _)| download.upgrade().is_some());
        running
            .contents
            .retain(|_, content| content.strong_count() > 0);

        let content = running
            .contents
            .get(&image.sha256)
            .and_then(Weak::upgrade)
            .unwrap_or_default();
        running
            .contents
            .insert(image.sha256.clone(), Arc::downgrade(&content));
        let (sender, stage) = watch::channel(Stage::Waiting);
        let work = download(
            Arc::clone(inner),
            image.clone(),
            content,
            Arc::clone(&self.places),
            sender,
        );
        let download = work.map(|result| result.map_err(Arc::new)).boxed().shared();
        if let Some(weak) = download.downgrade() {
            running
                .downloads
                .insert(image.clone(), (weak, stage.clone()));
        }
        (download, stage)
    }
}

async fn is_cached(inner: &Arc<Inner>, image: &ImageRef) -> Result<bool, StorageFault> {
    let (shared, image) = (Arc::clone(inner), image.clone());
    inner
        .files
        .run(move || {
            let is_there = cache::facts(&shared.paths, &image)?.is_some();
            if is_there {
                touch(&shared.paths.image(&image));
            }
            Ok(is_there)
        })
        .await
}

/// Waits for its turn, then fetches on a thread of its own, and converts what has to be converted.
async fn download(
    inner: Arc<Inner>,
    image: ImageRef,
    content: Arc<AsyncMutex<()>>,
    places: Arc<Semaphore>,
    stage: watch::Sender<Stage>,
) -> Result<(), StorageFault> {
    let _turn = match content.try_lock() {
        Ok(turn) => turn,
        Err(_) => {
            stage.send_replace(Stage::Waiting);
            content.lock().await
        }
    };
    let place = match Arc::clone(&places).try_acquire_owned() {
        Ok(place) => place,
        Err(_) => {
            stage.send_replace(Stage::Waiting);
            places.acquire_owned().await.map_err(StorageFault::thread)?
        }
    };
    let deadline = inner.options.download_deadline;
    let url = for_people(&image.url);
    let cancel = CancelOnDrop(Arc::default());
    let cancelled = Arc::clone(&cancel.0);
    let (shared, wanted, told) = (Arc::clone(&inner), image.clone(), stage.clone());
    let fetched = threads::run("berth-fetch", move || {
        let result = fetch::fetch(&shared, &wanted, &cancelled, &told);
        (result, place)
    });
    let (result, _place) = match tokio::time::timeout(deadline, fetched).await {
        Ok(answer) => answer.map_err(StorageFault::thread)?,
        Err(_) => {
            return Err(StorageFault::TooSlow {
                url,
                after: deadline,
            });
        }
    };
    match result? {
        Some(fetched) => convert::convert(&inner, &image, fetched, &stage).await,
        None => Ok(()),
    }
}

/// Tells the thread that nobody waits for it any more.
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

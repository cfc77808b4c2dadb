//! How the heap stays small. The defaults of the C library's `malloc` are made for throughput: an arena for nearly every
//! thread, each with holes of its own, and memory that is kept once it was needed. The agent waits most of its time: it has it
//! the other way round.

#![allow(
    unsafe_code,
    reason = "the C library is told here how to keep the heap, before there is any other thread"
)]

use std::time::Duration;

/// How often memory that is not in use goes back to the kernel.
const GIVE_BACK: Duration = Duration::from_secs(30);
/// From this size in bytes on, an allocation has pages of its own and they go when it does. It is glibc's own default; named, it
/// is not raised any more by the largest allocation that came and went.
#[cfg(target_env = "gnu")]
const OWN_PAGES: nix::libc::c_int = 128 << 10;

/// Tells the C library to keep one heap for all threads, and no more of it than is in use. To be called before the first
/// thread starts.
pub fn settle() {
    #[cfg(target_env = "gnu")]
    {
        use nix::libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, mallopt};
        for (option, value) in [
            (M_ARENA_MAX, 1),
            (M_MMAP_THRESHOLD, OWN_PAGES),
            (M_TRIM_THRESHOLD, OWN_PAGES),
        ] {
            // SAFETY: it takes two numbers and sets a variable of the allocator. No other thread runs yet.
            // Without an option that it does not know, more memory is kept and nothing else is different.
            let _known = unsafe { mallopt(option, value) };
        }
    }
}

/// Gives memory back to the kernel that lies unused between pieces in use, again and again.
pub async fn keep_small() {
    loop {
        tokio::time::sleep(GIVE_BACK).await;
        #[cfg(target_env = "gnu")]
        // SAFETY: it takes a number, and locks the allocator for as long as it works.
        unsafe {
            nix::libc::malloc_trim(0);
        }
    }
}

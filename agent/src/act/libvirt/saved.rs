//! The definition that lies in a domain's saved memory: what its guest will have when it goes on, whatever was defined
//! since. The crate `virt` has no call for it.

#![expect(
    unsafe_code,
    reason = "libvirt's function is only there as C, and its answer is the caller's to free"
)]

use std::ffi::CStr;

use nix::libc;
use virt::{domain::Domain, error::Error, sys};

/// The XML in a domain's saved memory.
pub(super) fn xml(domain: &Domain) -> Result<String, Error> {
    // SAFETY: the handle is valid as long as the domain that is borrowed. The answer is null, or a string that ends
    // with a zero and belongs to the caller, who frees it once, after it was copied.
    unsafe {
        let text = sys::virDomainManagedSaveGetXMLDesc(domain.as_ptr(), 0);
        if text.is_null() {
            return Err(Error::last_error());
        }
        let xml = CStr::from_ptr(text).to_string_lossy().into_owned();
        libc::free(text.cast());
        Ok(xml)
    }
}

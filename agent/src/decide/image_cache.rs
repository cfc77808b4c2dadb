//! The image cache: which file holds which image.
//!
//! A name tells all there is to know: what was fetched, and what became of it. So no document can meet bytes of
//! another kind than it states.

use berth_common::{
    document::{ImageFormat, ImageRef},
    names::ImageSha256,
};

/// The name of an image in the cache.
///
/// ```text
///   <sha256>                what was fetched, as it is (raw, qcow2)
///   <sha256>.vmdk.qcow2     what was made of it: it was fetched as a vmdk, and converted
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CachedName {
    sha256: ImageSha256,
    converted_from: Option<ImageFormat>,
}

impl CachedName {
    /// Where the image of a document is, once it is there.
    #[must_use]
    pub fn of(image: &ImageRef) -> Self {
        Self {
            sha256: image.sha256.clone(),
            converted_from: image.format.is_converted().then_some(image.format),
        }
    }

    /// What was fetched.
    #[must_use]
    pub const fn sha256(&self) -> &ImageSha256 {
        &self.sha256
    }

    /// The name of the file.
    #[must_use]
    pub fn file_name(&self) -> String {
        match self.converted_from {
            None => self.sha256.to_string(),
            Some(format) => format!(
                "{}.{}.{}",
                self.sha256,
                format.as_str(),
                format.cached().as_str()
            ),
        }
    }

    /// The image a file's name stands for; `None`: it is not one of the cache's.
    #[must_use]
    pub fn parse(file_name: &str) -> Option<Self> {
        let sum = file_name.split('.').next().unwrap_or_default();
        let sha256: ImageSha256 = sum.parse().ok()?;
        let formats = [ImageFormat::Vmdk, ImageFormat::Vdi, ImageFormat::Vhdx];
        std::iter::once(None)
            .chain(formats.map(Some))
            .map(|converted_from| Self {
                sha256: sha256.clone(),
                converted_from,
            })
            .find(|name| name.file_name() == file_name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_never_shared_by_two_formats() {
        let image = |format| ImageRef {
            url: "file:///a".parse().unwrap(),
            sha256: "ab".repeat(32).parse().unwrap(),
            format,
        };
        let sum = "ab".repeat(32);
        for (format, expected) in [
            (ImageFormat::Raw, sum.clone()),
            (ImageFormat::Qcow2, sum.clone()),
            (ImageFormat::Vmdk, format!("{sum}.vmdk.qcow2")),
            (ImageFormat::Vdi, format!("{sum}.vdi.qcow2")),
            (ImageFormat::Vhdx, format!("{sum}.vhdx.qcow2")),
        ] {
            let name = CachedName::of(&image(format));
            assert_eq!(name.file_name(), expected);
            assert_eq!(CachedName::parse(&expected), Some(name));
        }
        for other in [
            "",
            ".partial-x",
            "abc",
            &format!("{sum}.qcow2"),
            &format!("{sum}.raw.qcow2"),
            &format!("{sum}."),
        ] {
            assert_eq!(CachedName::parse(other), None, "{other}");
        }
    }
}

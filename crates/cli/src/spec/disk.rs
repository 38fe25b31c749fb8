//! `--disk` and `--cdrom`.
//!
//! ```text
//!   --disk /srv/root.qcow2,readonly           a path, then options; the format from .raw .img .qcow2
//!   --disk path=/srv/a,,b,format=raw,bus=scsi a comma inside a value is doubled
//! ```

use roost_client::v1::StorageDevice;

const OPTIONS: &str = "path=PATH, format=raw|qcow2, bus=virtio|scsi|sata, id=ID, readonly, root";

/// One `--disk`.
pub(crate) fn disk(text: &str) -> Result<StorageDevice, String> {
    let mut device = StorageDevice { device: "disk".to_owned(), ..Default::default() };
    for (i, part) in split(text).into_iter().enumerate() {
        match part.split_once('=') {
            // A path may hold a `=`; no option's name holds a `/`.
            Some((name, _)) if i == 0 && name.contains('/') => device.path = absolute(&part)?,
            Some(("path", path)) => device.path = absolute(path)?,
            Some(("format", format)) => device.format = format.to_owned(),
            Some(("bus", bus)) => device.interface_type = bus.to_owned(),
            Some(("id", id)) => device.id = id.to_owned(),
            Some(("readonly", word)) => device.read_only = yes(word)?,
            Some(("root", word)) => device.is_root_device = yes(word)?,
            None if part == "readonly" => device.read_only = true,
            None if part == "root" => device.is_root_device = true,
            None if i == 0 => device.path = absolute(&part)?,
            _ => return Err(format!("unknown option {part:?}; permitted: {OPTIONS}")),
        }
    }
    if device.path.is_empty() {
        return Err(format!("no path; permitted: {OPTIONS}"));
    }
    if device.format.is_empty() {
        device.format = match device.path.rsplit_once('.').map(|(_, extension)| extension) {
            Some("qcow2") => "qcow2",
            Some("raw" | "img") => "raw",
            _ => return Err("the format cannot be told by the name: add format=raw or format=qcow2".to_owned()),
        }
        .to_owned();
    }
    Ok(device)
}

/// One `--cdrom`.
pub(crate) fn cdrom(path: &str) -> Result<StorageDevice, String> {
    Ok(StorageDevice {
        path: absolute(path)?,
        read_only: true,
        device: "cdrom".to_owned(),
        format: "raw".to_owned(),
        ..Default::default()
    })
}

/// A path as the daemon needs it, which has a working directory of its own.
pub(crate) fn absolute(path: &str) -> Result<String, String> {
    if path.is_empty() {
        return Err("an empty path".to_owned());
    }
    let absolute = std::path::absolute(path).map_err(|e| e.to_string())?;
    absolute.into_os_string().into_string().map_err(|p| format!("{p:?} is not Unicode"))
}

/// At single commas; a doubled one stands for itself.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let part = parts.last_mut().expect("there is always one");
        match c {
            ',' if chars.next_if_eq(&',').is_some() => part.push(','),
            ',' => parts.push(String::new()),
            c => part.push(c),
        }
    }
    parts
}

fn yes(word: &str) -> Result<bool, String> {
    match word {
        "true" | "on" => Ok(true),
        "false" | "off" => Ok(false),
        _ => Err(format!("{word:?} is neither true nor false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_alone_is_a_disk_if_its_name_tells_the_format() {
        let found = disk("/srv/root.qcow2").unwrap();
        assert_eq!((found.path.as_str(), found.format.as_str(), found.read_only), ("/srv/root.qcow2", "qcow2", false));
        assert_eq!(disk("/srv/a.img").unwrap().format, "raw");
        assert_eq!(disk("/srv/a=b.raw,readonly").unwrap().path, "/srv/a=b.raw");
        assert!(disk("rel.raw").unwrap().path.starts_with('/'));
        assert!(disk("/srv/root.vmdk").unwrap_err().contains("format="));
    }

    #[test]
    fn options_are_named_and_commas_doubled() {
        let found = disk("path=/srv/a,,b,format=raw,bus=scsi,readonly,root,id=boot").unwrap();
        assert_eq!((found.path.as_str(), found.interface_type.as_str()), ("/srv/a,b", "scsi"));
        assert!(found.read_only && found.is_root_device);
        assert_eq!(found.id, "boot");
        // What would smuggle an option into another program is one here, and known or refused.
        assert!(disk("/srv/x.raw,readonly=on").unwrap().read_only);
        assert!(disk("/srv/x.raw,file.locking=off").unwrap_err().contains("unknown option"));
        assert!(disk("format=raw").unwrap_err().contains("no path"));
        assert!(disk("").is_err());
    }
}

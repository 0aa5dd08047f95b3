//! Opening on real files, and on loop devices where there are some.

use super::*;
use std::{fs::File, process::Command};

fn sync() -> DeviceOptions {
    DeviceOptions { io: IoBackend::Sync, direct: Direct::Off }
}

fn refused(result: Result<Arc<dyn Device>, DeviceError>) -> DeviceError {
    let error = result.map(drop).expect_err("refused");
    let message = error.to_string();
    assert!(!message.contains('\n') && !message.is_empty());
    error
}

#[test]
fn a_created_file_has_its_space_and_can_be_opened_again() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store");
    let device = create_file(&path, (1 << 20) + 5000, sync()).expect("create");
    assert_eq!(device.geometry().len_bytes, (1 << 20) + 4096);
    let metadata = std::fs::metadata(&path).expect("the file");
    assert!(metadata.blocks() * 512 > 1 << 20);
    assert_eq!(metadata.mode() & 0o777, 0o600);
    drop(device);
    let device = open_file(&path, DeviceOptions::default()).expect("open");
    assert_eq!(device.geometry().len_bytes, (1 << 20) + 4096);
    assert!(!device.geometry().direct);
}

#[test]
fn a_second_opening_is_refused_while_the_first_lasts() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store");
    for io in [IoBackend::Sync, IoBackend::Auto] {
        let options = DeviceOptions { io, ..sync() };
        drop(std::fs::remove_file(&path));
        let device = create_file(&path, 1 << 20, options).expect("create");
        let error = refused(open_file(&path, options));
        assert_eq!(error.to_string(), format!("store {} is held by another process", path.display()));
        drop(device);
        open_file(&path, options).expect("open");
    }
}

#[test]
fn each_refusal_has_its_kind_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store");
    assert!(matches!(refused(open_file(&path, sync())), DeviceError::NotFound { .. }));
    assert!(matches!(refused(create_file(&dir.path().join("no/store"), 1 << 20, sync())), DeviceError::NotFound { .. }));
    assert!(matches!(refused(create_file(&path, 4095, sync())), DeviceError::TooSmall { .. }));
    let error = refused(create_file(&path, 1 << 60, sync()));
    assert!(matches!(error, DeviceError::NoSpace { .. } | DeviceError::Unsupported { .. }));
    assert!(!path.exists());
    assert!(matches!(refused(open_file(dir.path(), sync())), DeviceError::Unsupported { .. }));
    assert!(matches!(refused(open_file(Path::new("/dev/null"), sync())), DeviceError::Unsupported { .. }));
    assert!(matches!(refused(open_block_device(Path::new("/dev/null"), sync())), DeviceError::Unsupported { .. }));
    File::create(&path).expect("an empty file");
    assert!(matches!(refused(open_file(&path, sync())), DeviceError::TooSmall { .. }));
    assert!(matches!(refused(create_file(&path, 1 << 20, sync())), DeviceError::Exists { .. }));
    assert!(path.exists(), "a file of somebody else is not removed");
    assert!(matches!(DeviceError::of(&path, "open", Errno::ACCESS), DeviceError::NotWritable { .. }));
}

#[test]
fn direct_io_is_on_only_where_it_works() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store");
    let options = DeviceOptions { direct: Direct::On, ..sync() };
    match create_file(&path, 1 << 20, options) {
        Ok(device) => assert!(device.geometry().direct),
        Err(error) => {
            println!("skipped: {error}");
            assert!(matches!(error, DeviceError::Unsupported { .. }));
            assert!(!path.exists());
        }
    }
}

/// A loop device over a file, taken down when dropped.
struct Loop {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Loop {
    /// `None`, with the reason printed, where there are no loop devices.
    fn new(sector_bytes: u32) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("disk");
        File::create(&file).and_then(|file| file.set_len(8 << 20)).expect("a file");
        let output = Command::new("losetup").args(["--find", "--show", "--sector-size"]).arg(sector_bytes.to_string()).arg(&file).output();
        match output {
            Ok(output) if output.status.success() => Some(Self { path: String::from_utf8_lossy(&output.stdout).trim().into(), _dir: dir }),
            Ok(output) => {
                let reason = String::from_utf8_lossy(&output.stderr).into_owned();
                println!("skipped: no loop device: {reason}");
                None
            }
            Err(error) => {
                println!("skipped: no losetup: {error}");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        drop(Command::new("losetup").arg("-d").arg(&self.path).status());
    }
}

#[tokio::test]
async fn a_block_device_of_either_sector_size_is_used_directly() {
    for sector_bytes in [512, 4096] {
        let Some(disk) = Loop::new(sector_bytes) else {
            return;
        };
        for io in [IoBackend::Sync, IoBackend::Auto] {
            let options = DeviceOptions { io, ..DeviceOptions::default() };
            let device = open_block_device(&disk.path, options).expect("open");
            let geometry = device.geometry().clone();
            assert!(geometry.direct && geometry.block_device);
            assert_eq!(geometry.logical_sector_bytes, sector_bytes);
            assert_eq!(geometry.len_bytes, 8 << 20);
            let held = refused(open_block_device(&disk.path, options));
            assert!(matches!(held, DeviceError::Held { .. }), "{held}");

            let place = (8 << 20) - 4096;
            let mut page = AlignedBuf::zeroed(PAGE_BYTES);
            device.write(place, page).await.1.expect("write");
            assert!(first_and_last_mib_are_zero(&*device).await.expect("read"));
            page = AlignedBuf::zeroed(PAGE_BYTES);
            page[4095] = 1;
            device.write(place, page).await.1.expect("write");
            device.flush().await.expect("flush");
            assert!(!first_and_last_mib_are_zero(&*device).await.expect("read"));
        }
    }
}

#[test]
fn a_mounted_device_is_refused() {
    let Some(disk) = Loop::new(512) else { return };
    let made = Command::new("mkfs.ext4").arg("-q").arg(&disk.path).status();
    let dir = tempfile::tempdir().expect("a directory");
    let mounted = Command::new("mount").arg(&disk.path).arg(dir.path()).status();
    if !made.is_ok_and(|status| status.success()) || !mounted.is_ok_and(|status| status.success()) {
        println!("skipped: cannot make or mount a file system");
        return;
    }
    let result = open_block_device(&disk.path, sync());
    drop(Command::new("umount").arg(dir.path()).status());
    assert!(matches!(refused(result), DeviceError::InUse { .. }));
}

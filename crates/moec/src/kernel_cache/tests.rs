//! Files that are whole, damaged or foreign, folders that are closed or open, and processes that share one.

use super::*;
use std::sync::Arc;

/// A folder for a cache, and what the cache has reported.
struct Lab {
    folder: tempfile::TempDir,
    reports: Arc<Mutex<Vec<String>>>,
}

impl Lab {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), reports: Arc::default() }
    }

    fn kernels(&self) -> PathBuf {
        self.folder.path().join("not/there/yet")
    }

    fn open_for(&self, program: &Path) -> KernelCache {
        let reports = self.reports.clone();
        KernelCache::open(&self.kernels(), program, move |reason| reports.lock().unwrap().push(reason.into())).unwrap()
    }

    fn open(&self) -> KernelCache {
        self.open_for(&std::env::current_exe().unwrap())
    }

    fn reports(&self) -> usize {
        self.reports.lock().unwrap().len()
    }
}

const OBJECTS: [(&str, &[u8]); 3] = [("one", b""), ("seven\nlines", b"7777777"), ("thirty-three", &[33; 33])];

#[test]
fn what_was_put_there_is_found_by_another_process() {
    let lab = Lab::new();
    let cache = lab.open();
    for (key, object) in OBJECTS {
        assert_eq!(cache.get(key), None);
        cache.put(key, object);
    }
    let again = lab.open();
    for (key, object) in OBJECTS {
        assert_eq!(again.get(key).as_deref(), Some(object), "{key}");
    }
    assert_eq!(KernelCache::usage(&lab.kernels()).unwrap().entries, 3);
    assert_eq!(KernelCache::clear(&lab.kernels()).unwrap().entries, 3);
    assert_eq!(KernelCache::usage(&lab.kernels()).unwrap(), KernelCacheUsage::default());
    assert_eq!((again.get("one"), lab.reports()), (None, 0));
    assert_eq!(KernelCache::usage(Path::new("/no/such/folder")).unwrap(), KernelCacheUsage::default());
}

#[test]
fn a_file_that_is_damaged_cut_off_or_of_another_key_does_not_count_and_is_replaced() {
    let lab = Lab::new();
    let cache = lab.open();
    let (key, object) = OBJECTS[2];
    cache.put(key, object);
    let path = cache.path(&cache.full_key(key));
    let whole = fs::read(&path).unwrap();
    let mut damaged: Vec<Vec<u8>> = (0..whole.len()).map(|length| whole[..length].to_vec()).collect();
    damaged.extend((0..whole.len()).map(|at| {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        changed
    }));
    damaged.push([&whole[..], b"\n"].concat());
    damaged.push(encode("another key", object));
    damaged.push(encode(&cache.full_key("another key"), object));
    for content in damaged {
        fs::write(&path, &content).unwrap();
        assert_eq!(cache.get(key), None, "{}", String::from_utf8_lossy(&content));
    }
    cache.put(key, object);
    assert_eq!((cache.get(key).as_deref(), lab.reports()), (Some(object), 0));
    assert_eq!(fs::read_dir(lab.kernels()).unwrap().count(), 1, "a temporary file was left behind");
}

#[test]
fn another_program_compiles_its_own() {
    let lab = Lab::new();
    let program = lab.folder.path().join("program");
    fs::write(&program, "one").unwrap();
    lab.open_for(&program).put("key", b"of one");
    lab.open().put("key", b"of this one");
    assert_eq!(lab.open_for(&program).get("key").as_deref(), Some(&b"of one"[..]));
    fs::write(&program, "two").unwrap();
    assert_eq!(lab.open_for(&program).get("key"), None);
    let this = std::env::current_exe().unwrap();
    assert_eq!(identity(&this).unwrap(), identity(&this).unwrap());
}

#[test]
fn what_was_not_used_for_longest_goes_first() {
    let lab = Lab::new();
    let names = ["a", "b", "c", "d"];
    let cache = lab.open();
    let size = encode(&cache.full_key("a"), &[1; 1000]).len() as u64;
    let cache = cache.with_limit(3 * size);
    let mut age = 10;
    for name in &names[..3] {
        cache.put(name, &[1; 1000]);
        let file = File::options().write(true).open(cache.path(&cache.full_key(name))).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        age -= 1;
    }
    assert!(cache.get("a").is_some());
    cache.put("d", &[1; 1000]);
    let left: Vec<bool> = names.iter().map(|name| cache.get(name).is_some()).collect();
    assert_eq!(left, [true, false, true, true]);
    assert!(KernelCache::usage(&lab.kernels()).unwrap().bytes <= 3 * size);
    lab.open().with_limit(size).put("e", &[1; 1000]);
    assert_eq!(KernelCache::usage(&lab.kernels()).unwrap().entries, 1);
}

#[test]
fn a_cache_that_cannot_be_written_or_read_says_so_once() {
    let lab = Lab::new();
    let cache = lab.open();
    for key in ["a", "b"] {
        fs::create_dir(cache.path(&cache.full_key(key))).unwrap();
        cache.put(key, b"object");
        assert_eq!(cache.get(key), None);
    }
    assert_eq!(lab.reports(), 1);
}

#[cfg(unix)]
#[test]
fn a_folder_that_others_can_write_to_is_not_used() {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::new();
    lab.open();
    let mode = |mode| fs::set_permissions(lab.kernels(), fs::Permissions::from_mode(mode)).unwrap();
    assert_eq!(fs::metadata(lab.kernels()).unwrap().permissions().mode() & 0o777, 0o700);
    let this = std::env::current_exe().unwrap();
    for open in [0o770, 0o702, 0o777] {
        mode(open);
        assert!(KernelCache::open(&lab.kernels(), &this, |_| ()).is_err_and(|e| e.contains("others can write")));
    }
    mode(0o500);
    assert!(KernelCache::open(&lab.kernels(), &this, |_| ()).is_ok());
    mode(0o700);
}

#[test]
fn what_another_process_is_writing_stays_and_what_nobody_writes_any_more_goes() {
    let lab = Lab::new();
    let cache = lab.open().with_limit(1);
    let file = |name: &str, age: Duration| {
        let path = lab.kernels().join(format!("{INCOMPLETE}{name}"));
        fs::write(&path, [1; 1000]).unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(SystemTime::now() - age).unwrap();
        path
    };
    let (being_written, abandoned) = (file("1-0", Duration::from_secs(9)), file("2-0", 2 * ABANDONED));
    cache.put("a", b"object");
    assert!(being_written.exists());
    assert!(!abandoned.exists());
    assert_eq!(cache.get("a"), None, "too little room for any");
    assert_eq!(lab.reports(), 0);
}

#[test]
fn processes_share_a_folder() {
    let lab = Lab::new();
    // Two caches know nothing of each other, like two processes.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let cache = lab.open().with_limit(20_000);
                for i in 0..50 {
                    let (key, object) = (format!("{}", i % 7), vec![(i % 7) as u8; 3000]);
                    cache.put(&key, &object);
                    assert!(cache.get(&key).is_none_or(|found| found == object));
                }
            });
        }
    });
    assert_eq!(lab.reports(), 0);
}

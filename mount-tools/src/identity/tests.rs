use super::*;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use tempfile::TempDir;

fn ca() -> ClusterCa {
    ClusterCa::for_test()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("written").permissions().mode() & 0o7777
}

/// A directory with node 7's identity of a fresh cluster.
fn stored() -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let identity = ca().issue(NodeId(7)).expect("in range");
    identity.store(dir.path()).expect("an empty directory");
    dir
}

fn load(dir: &Path, node: u16) -> Result<NodeIdentity, IdentityError> {
    NodeIdentity::load(
        NodeId(node),
        &dir.join(CA_CERT_FILE),
        &dir.join(NODE_CERT_FILE),
        &dir.join(NODE_KEY_FILE),
    )
}

/// Spoils a stored identity and expects these words in the error of loading it.
fn check_load(spoil: impl FnOnce(&Path), node: u16, expected: &[&str]) {
    let dir = stored();
    spoil(dir.path());
    let error = load(dir.path(), node).expect_err("spoilt").to_string();
    for word in expected {
        assert!(error.contains(word), "no {word:?} in {error:?}");
    }
    assert!(!error.contains('\n'), "one line: {error:?}");
}

#[test]
fn an_authority_survives_its_files() {
    let dir = tempfile::tempdir().expect("a directory");
    let made = ClusterCa::create(dir.path(), "lab-1").expect("an empty directory");
    assert_eq!(mode(&dir.path().join(CA_KEY_FILE)), 0o600);
    assert_eq!(mode(&dir.path().join(CA_CERT_FILE)), 0o644);

    let loaded = ClusterCa::load(dir.path()).expect("just written");
    assert_eq!(loaded.root(), made.root());
    assert_eq!(loaded.root().name(), "lab-1");
    assert_eq!(loaded.root().uuid().len(), 36);

    let identity = loaded.issue(NodeId(3)).expect("in range");
    identity.store(dir.path()).expect("ca.pem is the same");
    assert_eq!(mode(&dir.path().join(NODE_KEY_FILE)), 0o600);
    let identity = load(dir.path(), 3).expect("just written");
    assert_eq!(identity.node(), NodeId(3));
    let cert = identity.cert().expect("a certificate");
    assert!(made.root().is_node(&cert, NodeId(3)));
    assert!(!made.root().is_node(&cert, NodeId(33)));
}

#[test]
fn nothing_is_overwritten() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = ClusterCa::create(dir.path(), "one").expect("an empty directory");
    let error = ClusterCa::create(dir.path(), "two").expect_err("ca.key exists");
    assert!(matches!(error, IdentityError::Exists(_)), "{error}");
    let loaded = ClusterCa::load(dir.path()).expect("untouched");
    assert_eq!(loaded.root(), first.root());

    let stranger = ca().issue(NodeId(1)).expect("in range");
    let error = stranger.store(dir.path()).expect_err("another ca.pem");
    assert!(matches!(error, IdentityError::Exists(_)), "{error}");
}

#[test]
fn two_clusters_of_one_name_differ() {
    assert_ne!(ca().root().uuid(), ca().root().uuid());
}

#[test]
fn names_and_ids_are_checked() {
    for name in ["", "-a", "a-", "Home", "a.b", "a b", "ä", &"a".repeat(64)] {
        let error = ClusterCa::generate(name).expect_err(name);
        assert!(matches!(error, IdentityError::BadName(_)), "{error}");
    }
    for name in ["a", "lab-2", &"a".repeat(63)] {
        ClusterCa::generate(name).expect(name);
    }
    for id in [0, 10_000] {
        let error = ca().issue(NodeId(id)).expect_err("out of range");
        assert!(matches!(error, IdentityError::BadNode(_)), "{error}");
    }
}

#[test]
fn what_is_missing_is_named() {
    for (file, cure) in [
        (CA_CERT_FILE, "glu init"),
        (NODE_CERT_FILE, "issue"),
        (NODE_KEY_FILE, "issue"),
    ] {
        let remove = |dir: &Path| fs::remove_file(dir.join(file)).expect("stored");
        check_load(remove, 7, &[file, "missing", cure]);
    }
}

#[test]
fn an_open_key_is_refused() {
    for open_mode in [0o644, 0o640, 0o602, 0o666] {
        let open = |dir: &Path| {
            let permissions = fs::Permissions::from_mode(open_mode);
            fs::set_permissions(dir.join(NODE_KEY_FILE), permissions).expect("ours");
        };
        check_load(
            open,
            7,
            &["node.key", &format!("{open_mode:04o}"), "chmod 600"],
        );
    }
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let replace = |file: &'static str, text: String| {
        move |dir: &Path| fs::write(dir.join(file), text).expect("ours")
    };
    let other = ca();
    let stranger = other.issue(NodeId(7)).expect("in range");
    let of_root = replace(CA_CERT_FILE, other.root().pem().to_owned());
    check_load(of_root, 7, &["node.pem", "another cluster", "home"]);
    let of_cert = replace(NODE_CERT_FILE, stranger.cert_pem().to_owned());
    check_load(of_cert, 7, &["node.pem", "another cluster"]);
    let of_key = replace(NODE_KEY_FILE, stranger.key_pem().to_owned());
    check_load(of_key, 7, &["node.key", "not the key of", "node.pem"]);
    check_load(|_| (), 8, &["node.pem", "not the certificate of node 8"]);
    let node_as_root = replace(CA_CERT_FILE, stranger.cert_pem().to_owned());
    check_load(node_as_root, 7, &["ca.pem", "malformed", "authority"]);
    for file in [CA_CERT_FILE, NODE_CERT_FILE, NODE_KEY_FILE] {
        check_load(replace(file, "garbage".to_owned()), 7, &[file, "malformed"]);
        check_load(replace(file, String::new()), 7, &[file, "malformed"]);
    }
}

#[test]
fn the_time_of_a_certificate_is_checked() {
    let ca = ca();
    let now = SystemTime::now();
    let check = |issued: SystemTime| {
        let identity = ca.sign(NodeId(1), issued).expect("in range");
        identity.check("node.pem", "node.key", now)
    };
    check(now).expect("fresh");
    check(now + DAY / 2).expect("backdated by a day");
    check(now - NODE_VALID + DAY).expect("a day left");
    let error = check(now - NODE_VALID - DAY).expect_err("a day over");
    assert!(matches!(error, IdentityError::Expired { .. }), "{error}");
    let error = check(now + 2 * DAY).expect_err("a day early");
    assert!(
        matches!(error, IdentityError::NotYetValid { .. }),
        "{error}"
    );
}

#[test]
fn when_a_certificate_was_issued_is_known() {
    let ca = ca();
    let now = SystemTime::now();
    let cert = ca.sign(NodeId(1), now).expect("in range").cert();
    let cert = cert.expect("a certificate");
    let issued_by = |at| ca.root().has_issued_by(&cert, at);
    let second = Duration::from_secs(1);
    assert!(issued_by(now));
    assert!(issued_by(now + 100 * NODE_VALID));
    // It says so to the second.
    assert!(!issued_by(now - second));
    assert!(!issued_by(SystemTime::UNIX_EPOCH));
}

#[test]
fn an_authority_with_a_foreign_key_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    ClusterCa::create(dir.path(), "one").expect("an empty directory");
    fs::write(dir.path().join(CA_KEY_FILE), ca().key.serialize_pem()).expect("ours");
    let error = ClusterCa::load(dir.path()).expect_err("no pair");
    assert!(matches!(error, IdentityError::OtherKey { .. }), "{error}");
}

#[test]
fn a_forged_certificate_is_refused() {
    let forged = ca().forged(NodeId(1));
    let verdict = forged.check("node.pem", "node.key", SystemTime::now());
    verdict.expect_err("not signed by the authority it names");
}

#[test]
fn secrets_do_not_print() {
    let identity = ca().issue(NodeId(1)).expect("in range");
    assert!(!format!("{identity:?}").contains("PRIVATE"));
}

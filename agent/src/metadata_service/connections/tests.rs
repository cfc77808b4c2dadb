//! Tests of connections: who gets one, and what is answered.

use std::net::{Ipv4Addr, SocketAddr};

use super::*;

fn service(directory: &std::path::Path) -> Rc<Service> {
    Rc::new(Service {
        files: Files {
            sources: directory.join("sources"),
            instances: directory.to_owned(),
            counts: directory.join("counts"),
        },
        counts: Counts::new(directory.join("counts")),
        open: RefCell::default(),
        logged: Cell::new(None),
    })
}

fn peer(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 1024))
}

#[test]
fn one_guest_never_has_the_places_of_all() {
    let service = service(std::path::Path::new("/nowhere"));
    let take = |n| Service::place(&service, peer(n));
    let mut own: Vec<_> = (0..CONNECTIONS_EACH).map(|_| take(1)).collect();
    assert!(own.iter().all(Option::is_some));
    assert!(take(1).is_none());
    assert!(take(2).is_some());
    own.pop();
    assert!(take(1).is_some(), "a place that was given back is free");
    drop(own);
    assert!(service.open.borrow().is_empty());
    // Those of many are bounded as well.
    let all: Vec<_> = (0..=255)
        .flat_map(|n| [take(n), take(n)])
        .flatten()
        .collect();
    assert_eq!(all.len(), CONNECTIONS);
    assert!(take(200).is_none());
    drop(all);
    assert!(service.open.borrow().is_empty());
}

#[tokio::test]
async fn only_known_sources_are_told_and_damaged_files_are_said_to_be() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let service = service(path);
    let (known, unknown) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
    let get = Question::Get("/latest/meta-data/hostname".to_owned());
    let status = |source: Ipv4Addr| service.respond(source.into(), &get).status;
    assert_eq!(status(known), Status::NotFound);
    let instance = InstanceId::new();
    let sources: Sources = [(known.into(), instance)].into();
    std::fs::write(
        path.join("sources"),
        serde_json::to_string(&sources).unwrap(),
    )
    .unwrap();
    assert_eq!(status(known), Status::NotFound);
    let file = path.join(format!("{instance}.json"));
    std::fs::write(&file, r#"{"latest/meta-data/hostname": "web"}"#).unwrap();
    assert_eq!(status(unknown), Status::NotFound);
    let answer = service.respond(known.into(), &get);
    assert_eq!(
        (answer.status, answer.content.as_str()),
        (Status::Ok, "web")
    );
    for (question, expected) in [
        (Question::OtherMethod, Status::MethodNotAllowed),
        (Question::Nonsense, Status::BadRequest),
        (Question::TooLong, Status::TooLong),
    ] {
        assert_eq!(service.respond(known.into(), &question).status, expected);
    }
    std::fs::write(&file, "{").unwrap();
    assert_eq!(status(known), Status::Failed);
    std::fs::write(&file, vec![b' '; usize::try_from(GUEST_MAX).unwrap() + 1]).unwrap();
    assert_eq!(status(known), Status::Failed);
}

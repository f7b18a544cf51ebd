//! What is served, asked for over real sockets of this machine.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::server::limits::{
    HTTP_CONNECTIONS, HTTP_HEAD_TIME, HTTP_REQUESTS_AT_ONCE, HTTP_REQUESTS_PER_SECOND, METRICS_KEPT,
};
use super::*;
use crate::network::Split;
use crate::run::Status;

fn snapshot() -> Snapshot {
    let digest = fedprune_mask::Digest([7; 32]);
    let member = |name: &str, own, connected| MemberRow {
        name: name.to_owned(),
        own,
        connected,
        heard_seconds_ago: connected.then_some(1.5),
        ballot: connected.then(|| "held".to_owned()),
        shut_out: None,
        finished: false,
    };
    let sent = Split { bodies: 1000, gossip: 20, ..Split::default() };
    Snapshot {
        status: Status {
            running: true,
            phase: "agreeing".to_owned(),
            waits_for: Some("1 of 3 prevotes of a view".to_owned()),
            height: 1,
            heights: 4,
            sent_bytes: sent.total(),
            sent,
            seconds: 12.5,
            ..Status::at_start("north", 3, digest, "fedprune 0".to_owned(), Addresses::default())
        },
        consortium: digest,
        unix_ms: 1_700_000_000_000,
        view: 2,
        waits: Some(Waits { what: "prevotes of a view".to_owned(), found: 1, needed: 3 }),
        roster: vec![member("north", true, false), member("so\"u\\th\n", false, true), member("west", false, false)],
        agreement: vec![Some(0.875), None],
        agreement_by_chance: 0.5,
        steps: [("joined".to_owned(), 1.5)].into(),
        limits: [("answered busy".to_owned(), 3)].into(),
        events: [("connected".to_owned(), 1)].into(),
        log: [LogLine { unix_ms: 5, warning: true, event: "warning".to_owned(), text: "<b>x</b>".to_owned() }].into(),
    }
}

/// Serves a snapshot until dropped.
struct Server {
    endpoints: Addresses,
    sender: watch::Sender<Arc<Snapshot>>,
    _tasks: JoinSet<()>,
    _runtime: tokio::runtime::Runtime,
}

fn serve(page: bool, metrics: Option<&str>) -> Server {
    serve_with(page, metrics, Registry::default())
}

fn serve_with(page: bool, metrics: Option<&str>, registry: Registry) -> Server {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let addresses = Addresses { page: page.then_some(any), metrics: metrics.map(|address| address.parse().unwrap()) };
    let endpoints = Endpoints::bind(addresses).unwrap();
    let bound = Addresses { page: endpoints.page, metrics: endpoints.metrics };
    let (sender, snapshots) = watch::channel(Arc::new(snapshot()));
    let guard = runtime.enter();
    let tasks = endpoints.serve(snapshots, Arc::new(Mutex::new(registry))).unwrap();
    drop(guard);
    Server { endpoints: bound, sender, _tasks: tasks, _runtime: runtime }
}

/// What is answered to these bytes before the connection is closed.
fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // an answer may come before all was sent
    let _ = stream.write_all(request.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

fn get(address: SocketAddr, path: &str) -> (String, String) {
    let answer = raw(address, &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"));
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}"));
    (head.to_lowercase(), body.to_owned())
}

#[test]
fn page_state_and_metrics_are_served_from_one_snapshot() {
    let server = serve(true, Some("127.0.0.1:0"));
    let at = server.endpoints.page.unwrap();
    assert_eq!(server.endpoints.metrics, Some(at), "one socket for both");
    let (head, body) = get(at, "/");
    assert!(head.starts_with("http/1.1 200") && head.contains("content-type: text/html"), "{head}");
    assert!(body.starts_with("<!doctype html>") && body.ends_with("</html>\n"));
    for expected in
        ["content-security-policy: default-src 'none';", "x-content-type-options: nosniff", "cache-control: no-store"]
    {
        assert!(head.contains(expected), "{expected} in {head}");
    }
    assert!(!head.contains("access-control"), "{head}");
    let (head, body) = get(at, "/state.json");
    assert!(head.contains("content-type: application/json"), "{head}");
    assert_eq!(serde_json::from_str::<Snapshot>(&body).unwrap(), snapshot());
    let (head, body) = get(at, "/metrics");
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"), "{head}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    for line in [
        "# TYPE fedprune_sent_bytes counter",
        "# UNIT fedprune_sent_bytes bytes",
        "fedprune_sent_bytes_total{kind=\"bodies\"} 1000",
        "fedprune_uptime_seconds 12.5",
        "fedprune_block_agreement_ratio{block=\"0\"} 0.875",
        "fedprune_member_connected{member=\"west\"} 0.0",
        "fedprune_member_connected{member=\"so\\\"u\\\\th\\n\"} 1.0",
        "fedprune_limits_met_total{limit=\"answered busy\"} 3",
        "fedprune_waits_found{what=\"prevotes of a view\"} 1.0",
    ] {
        assert!(body.lines().any(|found| found == line), "{line} in\n{body}");
    }
    assert!(!body.contains("block=\"1\""), "what is not known is absent");
    assert!(body.contains("\nfedprune_node_info{member=\"north\""), "{body}");
}

#[test]
fn only_get_of_what_there_is_by_its_own_name() {
    let server = serve(true, Some("127.0.0.1:0"));
    let at = server.endpoints.page.unwrap();
    let ask = |line: &str, host: &str| {
        let answer = raw(at, &format!("{line}\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
        answer.split(' ').nth(1).unwrap_or_default().to_owned()
    };
    assert_eq!(ask("GET / HTTP/1.1", "localhost"), "200");
    assert_eq!(ask("GET /state.json?now HTTP/1.1", "[::1]:9"), "200");
    for path in ["/", "/state.json", "/metrics", "/nothing"] {
        assert_eq!(ask(&format!("GET {path} HTTP/1.1"), "rebound.example"), "421", "{path}");
        assert_eq!(ask(&format!("GET http://rebound.example{path} HTTP/1.1"), "localhost"), "421", "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE"] {
        assert_eq!(ask(&format!("{method} /state.json HTTP/1.1"), "localhost"), "405", "{method}");
    }
    for path in ["/state", "/metrics/", "//", "/../state.json", "/%73tate.json"] {
        assert_eq!(ask(&format!("GET {path} HTTP/1.1"), "localhost"), "404", "{path}");
    }
    let (_, body) = get(at, "/favicon.ico");
    assert_eq!(body, "not here; there is /, /state.json, /metrics\n");
}

#[test]
fn metrics_by_themselves_have_no_page() {
    let server = serve(false, Some("127.0.0.1:0"));
    let at = server.endpoints.metrics.unwrap();
    assert!(get(at, "/metrics").0.starts_with("http/1.1 200"));
    for path in ["/", "/state.json"] {
        let (head, body) = get(at, path);
        assert!(head.starts_with("http/1.1 404") && body == "not here; there is /metrics\n", "{head}");
    }
    // where others may scrape, they know this machine by other names
    let server = serve(false, Some("0.0.0.0:0"));
    let at: SocketAddr = format!("127.0.0.1:{}", server.endpoints.metrics.unwrap().port()).parse().unwrap();
    let answer = raw(at, "GET /metrics HTTP/1.1\r\nHost: silo.example:9464\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[test]
fn the_page_is_for_this_machine_and_a_taken_address_is_named() {
    let page = |address: &str| Addresses { page: Some(address.parse().unwrap()), metrics: None };
    let refused = Endpoints::bind(page("0.0.0.0:0")).err().unwrap().to_string();
    assert!(refused.contains("`0.0.0.0:0`") && refused.contains("ssh -L"), "{refused}");
    assert!(Endpoints::bind(page("192.0.2.1:0")).is_err());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let refused = Endpoints::bind(page(&address.to_string())).err().unwrap().to_string();
    assert!(refused.contains(&format!("cannot serve the page on `{address}`")), "{refused}");
    assert!(Endpoints::bind(Addresses::default()).unwrap().is_empty());
}

#[test]
fn long_and_slow_requests_are_given_up_and_others_are_answered() {
    let server = serve(true, None);
    let at = server.endpoints.page.unwrap();
    let long = raw(at, &format!("GET / HTTP/1.1\r\nHost: localhost\r\nCookie: {}\r\n\r\n", "x".repeat(64 << 10)));
    assert!(long.is_empty() || long.starts_with("HTTP/1.1 431"), "{long}");
    let many = "X: y\r\n".repeat(200);
    let many = raw(at, &format!("GET / HTTP/1.1\r\nHost: localhost\r\n{many}\r\n"));
    assert!(many.is_empty() || many.starts_with("HTTP/1.1 431"), "{many}");
    assert!(raw(at, "no request at all\r\n\r\n").starts_with("HTTP/1.1 400"), "what is none is refused");
    // all places are taken by clients that say nothing, and one byte of a request
    let began = Instant::now();
    let idle: Vec<TcpStream> = (0..HTTP_CONNECTIONS + 3).map(|_| TcpStream::connect(at).unwrap()).collect();
    for mut stream in idle.iter().take(HTTP_CONNECTIONS / 2) {
        stream.write_all(b"G").unwrap();
    }
    assert!(get(at, "/").0.starts_with("http/1.1 200"));
    let waited = began.elapsed();
    assert!(waited < HTTP_HEAD_TIME * 2 + Duration::from_secs(5), "{waited:?}");
    for mut stream in idle.into_iter().take(HTTP_CONNECTIONS) {
        stream.set_read_timeout(Some(HTTP_HEAD_TIME * 2)).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).expect("it was closed, not left open");
    }
}

/// Counts how often metrics are written down.
#[derive(Debug, Clone, Default)]
struct Written(Arc<AtomicU64>);

impl Collector for Written {
    fn encode(&self, _: DescriptorEncoder<'_>) -> std::fmt::Result {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Asks for metrics again and again on one connection, until `end`; returns how often it was answered.
fn ask_until(at: SocketAddr, end: Instant) -> u64 {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let (mut answers, mut buffer) = (0, vec![0; 64 << 10]);
    while Instant::now() < end {
        stream.write_all(format!("GET /metrics HTTP/1.1\r\nHost: {at}\r\n\r\n").as_bytes()).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"# EOF\n") {
            let read = stream.read(&mut buffer).unwrap();
            assert!(read > 0, "it was closed: {}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&buffer[..read]);
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 "));
        answers += 1;
    }
    answers
}

/// Where metrics can be reached, whoever reaches them can ask as fast as it likes; the node has other things to do.
#[test]
fn asking_without_end_costs_little() {
    let (written, mut registry) = (Written::default(), Registry::default());
    registry.register_collector(Box::new(written.clone()));
    let server = serve_with(false, Some("127.0.0.1:0"), registry);
    let at = server.endpoints.metrics.unwrap();
    let began = Instant::now();
    let end = began + Duration::from_millis(2_500);
    let clients = HTTP_CONNECTIONS as u64 / 4;
    let asking: Vec<_> = (0..clients).map(|_| std::thread::spawn(move || ask_until(at, end))).collect();
    let answers: u64 = asking.into_iter().map(|client| client.join().unwrap()).sum();
    let seconds = began.elapsed().as_secs_f64();
    let most = f64::from(HTTP_REQUESTS_AT_ONCE) + seconds * f64::from(HTTP_REQUESTS_PER_SECOND) + 1.0;
    assert!((answers as f64) <= most, "{answers} answers in {seconds} s");
    assert!(answers > u64::from(HTTP_REQUESTS_AT_ONCE), "those who ask are answered: {answers}");
    let times = written.0.load(Ordering::Relaxed);
    assert!(times as f64 <= seconds / METRICS_KEPT.as_secs_f64() + 1.0, "written {times} times in {seconds} s");
    // and yet nobody is told what was before what the node has published
    for height in 2..5 {
        let told = snapshot();
        let status = Status { height, ..told.status };
        server.sender.send_replace(Arc::new(Snapshot { status, ..told }));
        assert!(get(at, "/metrics").1.contains(&format!("\nfedprune_heights_done {height}")));
    }
    // clients that ask and go away leave nobody waiting for their turns
    for _ in 0..100 {
        let mut gone = TcpStream::connect(at).unwrap();
        gone.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    }
    let began = Instant::now();
    assert!(get(at, "/metrics").0.starts_with("http/1.1 200"));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

/// In headless Chromium, where there is one: the page draws what it was told, as text, and the browser refuses nothing.
#[test]
fn a_browser_draws_the_page_and_runs_nothing_else() {
    let found = ["chromium", "chromium-browser", "google-chrome"].into_iter().find(|name| {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&folders).any(|folder| folder.join(name).is_file())
    });
    let Some(browser) = found else {
        // standard error of tests is theirs
        let _ = writeln!(
            std::io::stderr(),
            "not tested in a browser: there is no chromium here (apt-get install chromium)"
        );
        return;
    };
    let server = serve(true, None);
    let at = server.endpoints.page.unwrap();
    let mut told = snapshot();
    let attack = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>";
    told.roster[1].name = attack.to_owned();
    told.roster[1].shut_out = Some(attack.to_owned());
    told.status.phase = attack.to_owned();
    told.limits.insert(attack.to_owned(), 7);
    told.log.push_back(LogLine { unix_ms: 6, warning: false, event: "x".to_owned(), text: attack.to_owned() });
    server.sender.send_replace(Arc::new(told));
    let profile = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(browser)
        .args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--virtual-time-budget=3000",
            "--enable-logging=stderr",
        ])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(["--dump-dom", &format!("http://{at}/")])
        .output()
        .unwrap();
    let (drawn, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    for expected in [
        "<h1 id=\"title\">fedprune node `north`</h1>",
        "<dt>heights done</dt><dd>1 of 4<small>agreeing in view 2</small></dd>",
        "<th scope=\"row\">north<div class=\"soft\">this node</div></th>",
        "<td class=\"number\">1.0 kB</td>",
        "<span>block 0</span><div class=\"bar\" aria-hidden=\"true\"><i style=\"width: 87.5%;\"></i>",
        "<span>87.5 %</span>",
        "class=\"warning\"",
        "<span>&lt;b&gt;x&lt;/b&gt;</span>",
        "&lt;/script&gt;: 7",
        "<p id=\"lost\" class=\"wide\" role=\"alert\" hidden=\"\"></p>",
    ] {
        assert!(drawn.contains(expected), "`{expected}` in\n{drawn}");
    }
    assert!(drawn.contains("<title>&lt;img") && !drawn.contains("<img"), "names are text\n{drawn}");
    for complaint in ["Content Security Policy", "Refused to", "Uncaught"] {
        assert!(!said.contains(complaint), "{said}");
    }
}

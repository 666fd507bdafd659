//! Chromium, by the WebDriver protocol: the few commands that a user of a keyboard needs.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tests::assert::eventually;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(super) const TAB: &str = "\u{e004}";
pub(super) const ENTER: &str = "\u{e007}";
pub(super) const DOWN: &str = "\u{e015}";
pub(super) const SPACE: &str = " ";

/// The most elements of a page that the Tab key reaches.
const STOPS_MAX: usize = 40;

/// A browser without a window. Dropping it ends it.
pub(super) struct Chromium {
    driver: Child,
    address: SocketAddr,
    session: String,
}

impl Chromium {
    /// Starts a driver, and a browser for a user of a language.
    pub(super) async fn start(driver: &str, language: &str) -> Self {
        let mut driver = Command::new(driver).arg("--port=0").stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(driver.stdout.take().unwrap());
        let port = output.lines().map_while(Result::ok).find_map(|line| {
            line.split_once("successfully on port ")?.1.trim_end_matches('.').parse::<u16>().ok()
        });
        let address = SocketAddr::from(([127, 0, 0, 1], port.unwrap()));
        let mut chromium = Self { driver, address, session: String::new() };
        let options = json!({
            // Root has no sandbox.
            "args": ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
            "prefs": { "intl.accept_languages": language },
        });
        let wanted = json!({ "browserName": "chrome", "goog:chromeOptions": options });
        let session = json!({ "capabilities": { "alwaysMatch": wanted } });
        let started = chromium.request("POST", "/session", &session).await;
        chromium.session = started["sessionId"].as_str().unwrap().to_owned();
        chromium
    }

    pub(super) async fn open(&self, url: &str) {
        self.post("url", &json!({ "url": url })).await;
    }

    /// What a script returns.
    pub(super) async fn script(&self, script: &str, arguments: &[Value]) -> Value {
        self.post("execute/sync", &json!({ "script": script, "args": arguments })).await
    }

    /// What a script passes to the function that is its last argument.
    pub(super) async fn script_with_callback(&self, script: &str) -> Value {
        self.post("execute/async", &json!({ "script": script, "args": [] })).await
    }

    /// A command of Chromium's own protocol.
    pub(super) async fn chromium(&self, command: &str, parameters: Value) {
        self.post("goog/cdp/execute", &json!({ "cmd": command, "params": parameters })).await;
    }

    /// Presses keys, one after the other.
    pub(super) async fn press(&self, keys: &str) {
        let strokes = keys.chars().flat_map(|key| {
            ["keyDown", "keyUp"].map(|stroke| json!({ "type": stroke, "value": key.to_string() }))
        });
        let keyboard = json!({ "type": "key", "id": "keyboard", "actions": strokes.collect::<Vec<_>>() });
        self.post("actions", &json!({ "actions": [keyboard] })).await;
    }

    /// Presses Tab until the focus is on an element, and sees that the focus is visible.
    pub(super) async fn tab_to(&self, selector: &str) {
        for _ in 0..STOPS_MAX {
            self.press(TAB).await;
            let script = "const at = document.activeElement;
                return [at.matches(arguments[0]), at.matches(':focus-visible') && getComputedStyle(at).outlineStyle != 'none']";
            let focus = self.script(script, &[selector.into()]).await;
            if focus[0] == true {
                assert_eq!(focus[1], true, "the focus on {selector} is not visible");
                return;
            }
        }
        panic!("the Tab key does not reach {selector}");
    }

    /// Waits until the heading of the page is this one.
    pub(super) async fn wait_for(&self, heading: &str) {
        self.wait_until("return document.querySelector('h1')?.textContent == arguments[0]", heading).await;
    }

    /// Waits until the page has an element.
    pub(super) async fn wait_for_element(&self, selector: &str) {
        self.wait_until("return !!document.querySelector(arguments[0])", selector).await;
    }

    async fn wait_until(&self, script: &str, argument: &str) {
        let holds = async || (self.script(script, &[argument.into()]).await == true).then_some(());
        eventually(argument, holds).await;
    }

    pub(super) async fn screenshot(&self) -> Vec<u8> {
        let path = format!("/session/{}/screenshot", self.session);
        STANDARD.decode(self.request("GET", &path, &Value::Null).await.as_str().unwrap()).unwrap()
    }

    async fn post(&self, command: &str, body: &Value) -> Value {
        self.request("POST", &format!("/session/{}/{command}", self.session), body).await
    }

    async fn request(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        let mut stream = tokio::io::BufReader::new(TcpStream::connect(self.address).await.unwrap());
        stream.write_all((head + &body).as_bytes()).await.unwrap();
        let mut length = 0;
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            if line.trim().is_empty() {
                break;
            }
            let line = line.to_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer).await.unwrap();
        let mut answer: Value = serde_json::from_slice(&answer).unwrap();
        let value = answer["value"].take();
        assert!(value.get("error").is_none(), "{path}: {value}");
        value
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // The driver ends its browsers when a session is deleted; a killed one leaves them behind.
        if let Ok(mut stream) = std::net::TcpStream::connect(self.address) {
            use std::io::{Read, Write};
            let request = format!("DELETE /session/{} HTTP/1.1\r\nhost: localhost\r\n\r\n", self.session);
            drop(stream.write_all(request.as_bytes()));
            drop(stream.read(&mut [0; 64]));
        }
        drop(self.driver.kill());
        drop(self.driver.wait());
    }
}

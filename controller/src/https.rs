//! The API's doors: HTTPS with a certificate of its own, and plain HTTP on loopback.
//!
//! Without a certificate in `data_dir/https` a self-signed one is made at the first start; an operator replaces the
//! two files with their own. Ports are bound before anything is served, so a port in use is an error at the start and
//! not a line in a log.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use axum_server::tls_rustls::RustlsConfig;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use tokio_util::sync::CancellationToken;

use crate::config::Http;

/// How long requests under way may take once the server is to stop.
const GRACE: Duration = Duration::from_secs(5);

/// Among the extensions of a request that came in encrypted.
#[derive(Debug, Clone, Copy)]
pub struct Encrypted;

/// Why a door does not open.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken, or not of this machine, or the port is the system's.
    #[error("cannot listen on {address} for the API")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file of the certificate cannot be read or written.
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// No certificate could be made.
    #[error("cannot make a self-signed certificate")]
    Certificate(#[source] rcgen::Error),
    /// The files hold no certificate and key that belong together.
    #[error("certificate {} and its key cannot be used", path.display())]
    Unusable {
        /// The certificate.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: std::io::Error,
    },
    /// A server stopped by itself.
    #[error("the API stopped serving on {address}")]
    Serve {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// Bound ports, not yet served.
pub struct Doors {
    https: Option<(TcpListener, SocketAddr, RustlsConfig)>,
    http: Option<(TcpListener, SocketAddr)>,
}

impl Doors {
    /// Binds the ports; makes the certificate if there is none in `dir`.
    ///
    /// # Errors
    /// [`Error`] names the address or the file.
    pub async fn open(config: &Http, dir: &Path) -> Result<Self, Error> {
        let http = config.http.map(bind).transpose()?;
        let https = match config.https {
            Some(address) => {
                let (listener, address) = bind(address)?;
                Some((listener, address, certificate(dir).await?))
            }
            None => None,
        };
        Ok(Self { https, http })
    }

    /// The bound address for HTTPS, its port resolved.
    pub fn https(&self) -> Option<SocketAddr> {
        self.https.as_ref().map(|(_, address, _)| *address)
    }

    /// The bound address for plain HTTP, its port resolved.
    pub fn http(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(|(_, address)| *address)
    }

    /// Serves until `shutdown`, then lets requests under way end, for at most five seconds.
    ///
    /// # Errors
    /// [`Error::Serve`] if a server stops by itself.
    pub async fn serve(self, router: Router, shutdown: CancellationToken) -> Result<(), Error> {
        let https_router = router.clone().layer(axum::Extension(Encrypted));
        let stop = shutdown.clone();
        let https = async move {
            let Some((listener, address, tls)) = self.https else { return Ok(()) };
            let handle = axum_server::Handle::new();
            let failed = |source| Error::Serve { address, source };
            let server = axum_server::from_tcp_rustls(listener, tls).map_err(failed)?.handle(handle.clone());
            let serving = server.serve(https_router.into_make_service_with_connect_info::<SocketAddr>());
            until(stop, handle, serving).await.map_err(failed)
        };
        let http = async move {
            let Some((listener, address)) = self.http else { return Ok(()) };
            let handle = axum_server::Handle::new();
            let failed = |source| Error::Serve { address, source };
            let server = axum_server::from_tcp(listener).map_err(failed)?.handle(handle.clone());
            let serving = server.serve(router.into_make_service_with_connect_info::<SocketAddr>());
            until(shutdown, handle, serving).await.map_err(failed)
        };
        tokio::try_join!(https, http).map(drop)
    }
}

async fn until(
    shutdown: CancellationToken,
    handle: axum_server::Handle<SocketAddr>,
    serving: impl Future<Output = std::io::Result<()>>,
) -> std::io::Result<()> {
    tokio::pin!(serving);
    tokio::select! {
        served = &mut serving => return served,
        () = shutdown.cancelled() => handle.graceful_shutdown(Some(GRACE)),
    }
    serving.await
}

fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let failed = |source| Error::Bind { address, source };
    let listener = TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

async fn certificate(dir: &Path) -> Result<RustlsConfig, Error> {
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    let there =
        |path: &Path| path.try_exists().map_err(|source| Error::File { path: path.to_owned(), source });
    if !there(&cert)? && !there(&key)? {
        make_certificate(dir, &cert, &key)?;
    }
    let unusable = |source| Error::Unusable { path: cert.clone(), source };
    RustlsConfig::from_pem_file(&cert, &key).await.map_err(unusable)
}

fn make_certificate(dir: &Path, cert: &Path, key: &Path) -> Result<(), Error> {
    let file = |path: &Path, source| Error::File { path: path.to_owned(), source };
    std::fs::create_dir_all(dir).map_err(|source| file(dir, source))?;
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(Error::Certificate)?;
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut names = vec!["localhost".to_owned()];
    if host != "localhost" && !host.is_empty() && host.is_ascii() {
        names.push(host);
    }
    let mut params = CertificateParams::new(names).map_err(Error::Certificate)?;
    params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
    params.subject_alt_names.push(SanType::IpAddress(std::net::Ipv6Addr::LOCALHOST.into()));
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, "Plexus controller");
    params.distinguished_name = name;
    let signed = params.self_signed(&pair).map_err(Error::Certificate)?;
    // The key first: a certificate without its key would be taken for an operator's.
    for (path, mode, text) in [(key, 0o600, pair.serialize_pem()), (cert, 0o644, signed.pem())] {
        let mut options = std::fs::OpenOptions::new();
        let opened = options.write(true).create(true).truncate(true).mode(mode).open(path);
        let written = opened.and_then(|mut out| out.write_all(text.as_bytes()).and_then(|()| out.sync_all()));
        written.map_err(|source| file(path, source))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    async fn doors(dir: &Path) -> Result<Doors, Error> {
        rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Doors::open(&Http { https: Some(any), http: Some(any) }, dir).await
    }

    #[tokio::test]
    async fn the_certificate_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let https = dir.path().join("https");
        doors(&https).await.unwrap();
        let first = std::fs::read(https.join("cert.pem")).unwrap();
        doors(&https).await.unwrap();
        assert_eq!(std::fs::read(https.join("cert.pem")).unwrap(), first);
        let mode = std::fs::metadata(https.join("key.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = Doors::open(&Http { https: None, http: Some(address) }, dir.path()).await.err().unwrap();
        assert_eq!(error.to_string(), format!("cannot listen on {address} for the API"));
    }

    #[tokio::test]
    async fn files_that_are_no_certificate_are_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cert.pem"), "x").unwrap();
        std::fs::write(dir.path().join("key.pem"), "x").unwrap();
        let error = doors(dir.path()).await.err().unwrap();
        assert!(matches!(error, Error::Unusable { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn both_doors_serve_and_close() {
        let dir = tempfile::tempdir().unwrap();
        let doors = doors(dir.path()).await.unwrap();
        let address = doors.http().unwrap();
        let here = |encrypted: Option<axum::Extension<Encrypted>>| async move {
            if encrypted.is_some() { "encrypted" } else { "here" }
        };
        let router = Router::new().route("/", axum::routing::get(here));
        let stop = CancellationToken::new();
        let serving = tokio::spawn(doors.serve(router, stop.clone()));
        let answer = tokio::task::spawn_blocking(move || {
            use std::io::Read;
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        assert!(answer.await.unwrap().ends_with("here"));
        stop.cancel();
        serving.await.unwrap().unwrap();
    }
}

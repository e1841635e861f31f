//! A body that is not JSON and is kept as a whole: it goes into the claim as it comes, so that its size costs no memory.

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, request};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use sha2::{Digest as _, Sha256};
use tokio::time::{Duration, Instant, timeout};

use super::{BODY_TIMEOUT, Draft, Keeping, Left, Publish};
use crate::body::Body;
use crate::claims::Upload;
use crate::claims::id::Audience;
use crate::error::{Error, Kind};
use crate::kafka::producer::PublishError;
use crate::pattern::slim::Slimmed;

/// How long a caller may send nothing of a large body.
const SILENCE: Duration = BODY_TIMEOUT;

/// What became of a call's body.
pub(super) enum Content {
    /// It is in memory.
    Read(Bytes),
    /// It is on its way into a claim.
    Large(Box<Large>),
}

/// A body that lies in a store, which has not promised to keep it yet.
pub(super) struct Large {
    pub(super) upload: Upload,
    pub(super) audience: Audience,
    pub(super) digest: [u8; 32],
    pub(super) size: u64,
}

impl Content {
    /// SHA-256 of the body.
    pub(super) fn digest(&self) -> [u8; 32] {
        match self {
            Self::Read(body) => Sha256::digest(body).into(),
            Self::Large(large) => large.digest,
        }
    }
}

impl Publish {
    /// Takes a call's body.
    pub(super) async fn content(
        &self,
        headers: &HeaderMap,
        body: Body,
        started: Instant,
    ) -> Result<Content, Error> {
        match self.takes_large(headers) {
            // Boxed: rare, and larger than all the rest, which every call pays for.
            Some((keeping, over)) => Box::pin(self.take(keeping, body, over)).await,
            None => self.read(body, started).await.map(Content::Read),
        }
    }

    /// Where a body goes that is not JSON, and above how many bytes, if the route takes such.
    pub(super) fn takes_large(&self, headers: &HeaderMap) -> Option<(&Keeping, usize)> {
        let keeping = self.claim.as_ref()?;
        let over = over(keeping.whole_over, headers)?;
        Some((keeping, over))
    }

    /// Finds the key of a call whose body is in a store, and has that keep it.
    pub(super) async fn draft_of(
        &self,
        head: &request::Parts,
        large: Large,
    ) -> Result<Draft, Error> {
        let key = self
            .plan
            .key(&Slimmed::default(), &head.headers, head.uri.path())?;
        let Large {
            upload,
            audience,
            digest,
            size,
        } = large;
        let claim = upload.finish(digest, audience).await?;
        let left = Left {
            // The whole document (RFC 6901 section 5).
            cut: vec![String::new()],
            none: true,
        };
        Ok(Draft {
            key,
            value: Bytes::new(),
            claim: Some((claim, left)),
            saved: usize::try_from(size).unwrap_or(usize::MAX),
        })
    }

    /// Takes a body that is not JSON: up to `over` bytes into memory, a larger one into the store.
    async fn take(&self, keeping: &Keeping, mut body: Body, over: usize) -> Result<Content, Error> {
        let mut first = BytesMut::new();
        while first.len() <= over {
            match self.next(&mut body).await? {
                Some(part) => first.extend_from_slice(&part),
                None => return Ok(Content::Read(first.freeze())),
            }
        }
        // Otherwise the bodies of refused calls would fill the store.
        self.may_send(0)?;
        let most = body.size_hint().upper().unwrap_or(self.max_body as u64);
        let begun = self.sender.claims.begin(keeping.store, most).await;
        let mut upload = begun?;
        let mut hash = Sha256::new();
        let (mut part, mut size) = (Some(first.freeze()), 0);
        while let Some(bytes) = part {
            size += bytes.len() as u64;
            hash.update(&bytes);
            if size > self.max_body as u64 {
                let detail = format!("the body is over the limit of {} bytes", self.max_body);
                return Err(Error::new(Kind::BodyTooLarge, detail));
            }
            upload.write(&bytes).await?;
            part = self.next(&mut body).await?;
        }
        let digest = hash.finalize().into();
        Ok(Content::Large(Box::new(Large {
            upload,
            audience: keeping.audience,
            digest,
            size,
        })))
    }

    /// The next bytes of a body.
    async fn next(&self, body: &mut Body) -> Result<Option<Bytes>, Error> {
        loop {
            let Ok(frame) = timeout(SILENCE, body.frame()).await else {
                let wait = humantime::format_duration(SILENCE);
                let detail = format!("nothing of the body came for {wait}");
                return Err(Error::new(Kind::CallerTimeout, detail));
            };
            match frame {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// Refuses what the broker would refuse, before anything is kept for it.
    pub(super) fn may_send(&self, bytes: usize) -> Result<(), Error> {
        match &self.sender.outbox {
            Some((outbox, _)) => outbox.check(&self.way.topic, bytes)?,
            None if self.sender.producer.is_away() => return Err(PublishError::BrokerAway.into()),
            None => {}
        }
        if bytes > self.sender.producer.record_max() {
            return Err(PublishError::TooLarge.into());
        }
        self.refusals.check(bytes)
    }
}

/// Above how many bytes a call's body is a claim as a whole: `whole_over`, for one that is not JSON.
pub fn over(whole_over: Option<usize>, headers: &HeaderMap) -> Option<usize> {
    whole_over.filter(|_| !is_json(headers))
}

/// Whether a call's body is JSON, or does not say what it is.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(media_type) = headers.get(CONTENT_TYPE) else {
        return true;
    };
    let essence = media_type.as_bytes().split(|byte| *byte == b';').next();
    let essence = essence
        .unwrap_or_default()
        .trim_ascii()
        .to_ascii_lowercase();
    essence.ends_with(b"/json") || essence.ends_with(b"+json")
}

//! Errors as clients see them: RFC 9457 problem details. Inner errors are logged here, once, and never sent.

use std::{borrow::Cow, error::Error};

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::shards::RouteError;

const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");

/// An answer that says why a request was not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    kind: Cow<'static, str>,
    title: Cow<'static, str>,
    status: StatusCode,
    detail: String,
    retry_after_seconds: Option<u32>,
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: &'a str,
    title: &'a str,
    status: u16,
    detail: &'a str,
}

impl Problem {
    /// A problem that its status says all about.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        Self {
            kind: "about:blank".into(),
            title: title.into(),
            status,
            detail: detail.into(),
            retry_after_seconds: None,
        }
    }

    /// Gives the problem a type of its own, which clients may tell it by.
    #[must_use]
    pub fn of_kind(mut self, kind: &'static str, title: &'static str) -> Self {
        self.kind = kind.into();
        self.title = title.into();
        self
    }

    /// Says when another try is worthwhile.
    #[must_use]
    pub fn retry_after_seconds(mut self, seconds: u32) -> Self {
        self.retry_after_seconds = Some(seconds);
        self
    }

    /// The request is not valid.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// There is no such thing.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// Not now: the request may be sent again, unchanged.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after_seconds(1)
    }

    /// A fault of ours.
    #[must_use]
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the request failed; the cause is in the service's log")
    }

    /// The status it is sent with.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = Body {
            r#type: &self.kind,
            title: &self.title,
            status: self.status.as_u16(),
            detail: &self.detail,
        };
        let mut response = (self.status, Json(body)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, CONTENT_TYPE);
        if let Some(seconds) = self.retry_after_seconds {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match &error {
            RouteError::Deadline { .. } => {
                tracing::warn!(error = chain(&error), "a bucket was not served before its deadline");
                Self::unavailable("the data is being moved or its shard is out of reach; try again")
            }
            RouteError::Statement { .. } => {
                tracing::error!(error = chain(&error), "a statement failed");
                Self::internal()
            }
        }
    }
}

/// An error and its causes on one line; a cause that the error before it has told already is left out.
pub(crate) fn chain(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source()).map(ToString::to_string);
    causes.fold(
        error.to_string(),
        |line, cause| if line.ends_with(&cause) { line } else { format!("{line}: {cause}") },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_its_content_type_and_when_to_retry() {
        let response = Problem::unavailable("later").into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }

    #[test]
    fn names_every_cause_once() {
        let error = TestError { source: std::io::Error::other("inner") };
        assert_eq!(chain(&error), "outer: inner");
        let error = sqlx::Error::Io(std::io::Error::other("reset"));
        assert_eq!(chain(&error), "error communicating with database: reset");
    }

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct TestError {
        source: std::io::Error,
    }
}

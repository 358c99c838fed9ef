//! Faults of messages, and the one place where errors become gRPC codes and come back.

use tonic::{Code, Status};

/// A message that breaks the contract.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A part that must be there is not.
    #[error("message lacks `{field}`")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// A value outside its limits.
    #[error("`{field}`: expected {expected}, found {found}")]
    Value {
        /// The field.
        field: &'static str,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Bytes that are not those that were sent.
    #[error("{what} came damaged: expected checksum {expected:08x}, found {found:08x}")]
    Checksum {
        /// The header, the tokens, or which image.
        what: String,
        /// As the header has it.
        expected: u32,
        /// Of what came.
        found: u32,
    },
    /// A part of a batch that cannot come here.
    #[error("batch parts out of order: expected {expected}, found {found}")]
    Order {
        /// What should have come.
        expected: String,
        /// What came.
        found: String,
    },
}

impl WireError {
    pub(crate) fn value(field: &'static str, expected: impl ToString, found: impl ToString) -> Self {
        Self::Value { field, expected: expected.to_string(), found: found.to_string() }
    }
}

/// What kind of refusal a server answers with. Each has one gRPC code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request itself is wrong.
    InvalidRequest,
    /// The request belongs to other data, another batch spec or another version.
    Mismatch,
    /// The server has no data set of that name.
    NotFound,
    /// The caller has not shown who it is.
    Unauthenticated,
    /// The caller may not do that.
    Forbidden,
    /// The position is beyond the data.
    OutOfRange,
    /// The data is damaged.
    Damaged,
    /// The server is at its limit of consumers.
    Busy,
    /// The server is stopping, or cannot be reached.
    Unavailable,
    /// The peer broke the contract, or failed without a reason.
    Internal,
}

impl ErrorKind {
    /// Its name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::Mismatch => "mismatch",
            Self::NotFound => "not_found",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::OutOfRange => "out_of_range",
            Self::Damaged => "damaged",
            Self::Busy => "busy",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }
}

const CODES: [(ErrorKind, Code); 10] = [
    (ErrorKind::InvalidRequest, Code::InvalidArgument),
    (ErrorKind::Mismatch, Code::FailedPrecondition),
    (ErrorKind::NotFound, Code::NotFound),
    (ErrorKind::Unauthenticated, Code::Unauthenticated),
    (ErrorKind::Forbidden, Code::PermissionDenied),
    (ErrorKind::OutOfRange, Code::OutOfRange),
    (ErrorKind::Damaged, Code::DataLoss),
    (ErrorKind::Busy, Code::ResourceExhausted),
    (ErrorKind::Unavailable, Code::Unavailable),
    (ErrorKind::Internal, Code::Internal),
];

/// An error of the service, the same on both sides of the wire.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ServiceError {
    /// What kind it is.
    pub kind: ErrorKind,
    /// What happened, for people.
    pub message: String,
}

impl ServiceError {
    /// An error of `kind`.
    pub fn new(kind: ErrorKind, message: impl ToString) -> Self {
        Self { kind, message: message.to_string() }
    }

    /// Whether the same request may succeed later, here or at another server.
    pub fn is_retryable(&self) -> bool {
        matches!(self.kind, ErrorKind::Busy | ErrorKind::Unavailable)
    }
}

impl From<WireError> for ServiceError {
    /// On the serving side: a request that breaks the contract, or that may come right another time.
    fn from(error: WireError) -> Self {
        let is_damaged = matches!(error, WireError::Checksum { .. });
        Self::new(if is_damaged { ErrorKind::Unavailable } else { ErrorKind::InvalidRequest }, error)
    }
}

impl From<ServiceError> for Status {
    fn from(error: ServiceError) -> Self {
        let code = CODES.iter().find(|(kind, _)| *kind == error.kind).map_or(Code::Internal, |(_, code)| *code);
        Self::new(code, error.message)
    }
}

impl From<Status> for ServiceError {
    /// On the consuming side. A status made by the transport itself, known by its source, is a lost connection
    /// whatever its code; one sent by the server is what its code says.
    fn from(status: Status) -> Self {
        let lost = std::error::Error::source(&status).is_some();
        let known = CODES.iter().find(|(_, code)| *code == status.code()).map(|(kind, _)| *kind);
        let kind = match status.code() {
            _ if lost => ErrorKind::Unavailable,
            Code::Cancelled | Code::Aborted | Code::DeadlineExceeded => ErrorKind::Unavailable,
            _ => known.unwrap_or(ErrorKind::Internal),
        };
        let message = match status.message() {
            "" => status.code().to_string(),
            message => message.to_owned(),
        };
        Self { kind, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_the_wire() {
        for (kind, code) in CODES {
            let error = ServiceError::new(kind, "why");
            let status = Status::from(error.clone());
            assert_eq!((status.code(), status.message()), (code, "why"));
            assert_eq!(ServiceError::from(status), error);
        }
    }

    #[test]
    fn only_a_busy_or_absent_server_is_tried_again() {
        let retryable = |code| ServiceError::from(Status::new(code, "")).is_retryable();
        assert!(retryable(Code::Unavailable) && retryable(Code::ResourceExhausted) && retryable(Code::Cancelled));
        assert!(!retryable(Code::DataLoss) && !retryable(Code::FailedPrecondition) && !retryable(Code::Unknown));
        assert!(!retryable(Code::Unimplemented) && !retryable(Code::OutOfRange));
    }

    #[test]
    fn a_broken_connection_is_retryable_whatever_its_code() {
        let broken = std::io::Error::new(std::io::ErrorKind::ConnectionReset, "reset");
        assert!(ServiceError::from(Status::from_error(Box::new(broken))).is_retryable());
    }
}

//! The wire contract: vela.loader.v1, conversions to vela-types, error codes.

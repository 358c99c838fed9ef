//! The gRPC loader service over vela-dataset, and the loader binary.

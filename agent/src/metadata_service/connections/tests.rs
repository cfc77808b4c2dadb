//! Tests of connections to the metadata service.

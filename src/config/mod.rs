//! From YAML to a [`model::Config`]: raw located nodes, then one walk that collects every error.

pub mod model;

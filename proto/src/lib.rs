//! The contract: generated messages, clients and servers of the packages under `csp/`.
//!
//! The comments of the `.proto` files are the manual of the product and appear here as they stand
//! there. No logic lives in this crate.

pub mod identity;

/// The packages, nested as the generated code expects them.
pub mod csp {
    /// Words that both services share.
    pub mod r#type {
        /// Version 1.
        pub mod v1 {
            tonic::include_proto!("csp.r#type.v1");
        }
    }
    /// What agreement-svc serves.
    pub mod agreement {
        /// Version 1.
        #[expect(
            clippy::large_enum_variant,
            reason = "the code is generated, and most of a stream is events"
        )]
        pub mod v1 {
            tonic::include_proto!("csp.agreement.v1");
        }
    }
    /// What order-svc serves.
    pub mod order {
        /// Version 1.
        #[expect(
            clippy::large_enum_variant,
            reason = "the code is generated, and most of a stream is events"
        )]
        pub mod v1 {
            tonic::include_proto!("csp.order.v1");
        }
    }
}

pub use csp::agreement::v1 as agreement;
pub use csp::order::v1 as order;
pub use csp::r#type::v1 as types;

/// The encoded `FileDescriptorSet` of the whole contract, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

impl types::ErrorReason {
    /// The name as `ErrorInfo.reason` carries it: without the enum's prefix.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.as_str_name().trim_start_matches("ERROR_REASON_")
    }
}

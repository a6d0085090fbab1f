//! `CompileOptionsProto`: how many devices a program runs on, which ones, and the compiler's flags.
//!
//! Field numbers are those of xla/pjrt/proto/compile_options.proto and xla/xla_data.proto.

use std::collections::BTreeMap;

use prost::Message;

use super::api::Value;

/// Options of compilation. Programs have one replica per device, and no partitioner.
#[derive(Clone, Debug, Default)]
pub struct CompileOptions {
    /// Device id of each replica, in order. Empty means one replica on the default device.
    pub replica_devices: Vec<i32>,
    /// XLA flags for this compilation only, e.g. `xla_cpu_enable_fast_math`. An unknown one is a
    /// clean error.
    pub flags: BTreeMap<String, Value>,
}

impl CompileOptions {
    /// Returns options for one replica on each of these devices.
    pub fn replicas(devices: impl IntoIterator<Item = i32>) -> Self {
        Self { replica_devices: devices.into_iter().collect(), flags: BTreeMap::new() }
    }

    /// Returns the number of devices that the program runs on.
    pub fn num_replicas(&self) -> usize {
        self.replica_devices.len().max(1)
    }

    /// Returns the serialized `CompileOptionsProto`.
    pub fn encode(&self) -> Vec<u8> {
        let replicas = self.num_replicas();
        let assignment = (!self.replica_devices.is_empty()).then(|| DeviceAssignmentProto {
            replica_count: replicas as i32,
            computation_count: 1,
            computation_devices: vec![ComputationDeviceProto {
                replica_device_ids: self.replica_devices.iter().map(|&id| i64::from(id)).collect(),
            }],
        });
        let flags = self.flags.iter().filter_map(|(name, value)| {
            let value = match value {
                Value::Str(s) => flag::Value::Str(s.clone()),
                Value::Int(i) => flag::Value::Int(*i),
                Value::Float(f) => flag::Value::Double(f64::from(*f)),
                Value::Bool(b) => flag::Value::Bool(*b),
                Value::Ints(_) => return None, // no such flags exist
            };
            Some((name.clone(), FlagProto { value: Some(value) }))
        });
        CompileOptionsProto {
            executable_build_options: Some(BuildOptionsProto {
                device_ordinal: -1,
                num_replicas: replicas as i64,
                num_partitions: 1,
                device_assignment: assignment,
            }),
            env_option_overrides: flags.collect(),
        }
        .encode_to_vec()
    }
}

#[derive(Clone, PartialEq, Message)]
struct ComputationDeviceProto {
    #[prost(int64, repeated, tag = "1")]
    replica_device_ids: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct DeviceAssignmentProto {
    #[prost(int32, tag = "1")]
    replica_count: i32,
    #[prost(int32, tag = "2")]
    computation_count: i32,
    #[prost(message, repeated, tag = "3")]
    computation_devices: Vec<ComputationDeviceProto>,
}

#[derive(Clone, PartialEq, Message)]
struct BuildOptionsProto {
    #[prost(int64, tag = "1")]
    device_ordinal: i64,
    #[prost(int64, tag = "4")]
    num_replicas: i64,
    #[prost(int64, tag = "5")]
    num_partitions: i64,
    #[prost(message, optional, tag = "9")]
    device_assignment: Option<DeviceAssignmentProto>,
}

#[derive(Clone, PartialEq, Message)]
struct FlagProto {
    #[prost(oneof = "flag::Value", tags = "1, 2, 3, 4")]
    value: Option<flag::Value>,
}

mod flag {
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Value {
        #[prost(string, tag = "1")]
        Str(String),
        #[prost(bool, tag = "2")]
        Bool(bool),
        #[prost(int64, tag = "3")]
        Int(i64),
        #[prost(double, tag = "4")]
        Double(f64),
    }
}

#[derive(Clone, PartialEq, Message)]
struct CompileOptionsProto {
    #[prost(message, optional, tag = "3")]
    executable_build_options: Option<BuildOptionsProto>,
    #[prost(btree_map = "string, message", tag = "7")]
    env_option_overrides: BTreeMap<String, FlagProto>,
}

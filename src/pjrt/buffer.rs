//! An array in device memory.

use std::ffi::c_void;

use super::{
    abi::{
        BufferCopyRawToHost, BufferDestroy, BufferIsDeleted, BufferOpaqueDeviceMemoryDataPointer, BufferReadyEvent,
        BufferToHostBuffer, CStruct, Ptr,
    },
    client::Client,
    error::{Error, Result},
    event::Event,
    tensor_type::TensorType,
};

/// An array on one device. Its host side is row-major. Destroyed on drop, also after it was
/// donated.
pub struct Buffer {
    client: Client,
    ptr: Ptr,
    ty: TensorType,
}
// SAFETY: PJRT buffers are thread-safe.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    pub(super) fn new(client: &Client, ptr: Ptr, ty: TensorType) -> Self {
        Self { client: client.clone(), ptr, ty }
    }

    pub(super) fn ptr(&self) -> Ptr {
        self.ptr
    }

    /// Returns the element type and dimensions.
    pub fn ty(&self) -> &TensorType {
        &self.ty
    }

    /// Waits until the buffer has its value.
    ///
    /// # Errors
    /// The computation of the value failed.
    pub fn wait(&self) -> Result<()> {
        let args = BufferReadyEvent { buffer: self.ptr, ..BufferReadyEvent::zeroed() };
        let event = self.client.api().call(args)?.event;
        Event::new(self.client.api(), event).wait()
    }

    /// Returns whether the buffer was donated to a program, and so has no value any more.
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn is_deleted(&self) -> Result<bool> {
        Ok(self.client.api().call(BufferIsDeleted { buffer: self.ptr, ..BufferIsDeleted::zeroed() })?.is_deleted)
    }

    /// Copies the whole array to the host, row-major, in host byte order.
    ///
    /// # Errors
    /// The computation of the value or the transfer failed.
    pub fn to_host(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.ty.host_bytes()];
        let args = BufferToHostBuffer {
            src: self.ptr,
            dst: bytes.as_mut_ptr().cast::<c_void>(),
            dst_size: bytes.len(),
            ..BufferToHostBuffer::zeroed()
        };
        let event = self.client.api().call(args)?.event;
        // The plugin writes into `bytes` until the event fires, so an early return must not free
        // it: wait always.
        Event::new(self.client.api(), event).wait()?;
        Ok(bytes)
    }

    /// Copies the whole array to the host, as numbers of type `T`.
    ///
    /// # Errors
    /// `T` has another size than the element type, or the computation of the value or the transfer
    /// failed.
    pub fn to_vec<T: bytemuck::Pod>(&self) -> Result<Vec<T>> {
        if size_of::<T>() * 8 != self.ty.element_type.host_bits() {
            return Err(Error::Argument(format!(
                "cannot read a buffer of {} as {}",
                self.ty,
                std::any::type_name::<T>()
            )));
        }
        Ok(bytemuck::allocation::pod_collect_to_vec(&self.to_host()?))
    }

    /// Copies a part of a large array to the host: fills `out` with the bytes from `offset` on in
    /// device memory. Their order is the device's, which is row-major for all programs of this
    /// crate.
    ///
    /// # Errors
    /// The range leaves the array, or the transfer failed.
    pub fn read_part(&self, out: &mut [u8], offset: usize) -> Result<()> {
        let total = self.ty.host_bytes();
        if offset.checked_add(out.len()).is_none_or(|end| end > total) {
            let len = out.len();
            return Err(Error::Argument(format!(
                "cannot read {len} bytes at {offset} of {}, which has {total}",
                self.ty
            )));
        }
        let args = BufferCopyRawToHost {
            buffer: self.ptr,
            dst: out.as_mut_ptr().cast(),
            offset: offset as i64,
            transfer_size: out.len() as i64,
            ..BufferCopyRawToHost::zeroed()
        };
        let event = self.client.api().call(args)?.event;
        Event::new(self.client.api(), event).wait()
    }

    /// Returns the address of the array in the device's address space, which on CPU is the host's.
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn device_address(&self) -> Result<usize> {
        let args = BufferOpaqueDeviceMemoryDataPointer { buffer: self.ptr, ..CStruct::zeroed() };
        Ok(self.client.api().call(args)?.device_memory_ptr as usize)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.client.api().destroy(BufferDestroy { buffer: self.ptr, ..BufferDestroy::zeroed() });
    }
}

//! Transfers of arrays from the host to a device: copied, borrowed, or sent piece by piece.

use std::ffi::c_int;

use super::{
    abi::{
        CStruct, ClientBufferFromHostBuffer, ClientCreateBuffersForAsyncHostToDevice, Ptr, RetrieveBuffer, ShapeSpec,
        TransferData, TransferManagerDestroy,
    },
    buffer::Buffer,
    client::Client,
    device::Device,
    error::{Error, Result},
    event::Event,
    host::HostBytes,
    tensor_type::TensorType,
};

/// The time during which the plugin may read the host's memory, in `BufferFromHostBuffer`.
#[derive(Clone, Copy)]
enum HostBufferSemantics {
    OnlyDuringCall = 0,
    UntilTransferCompletes = 1,
    ZeroCopy = 2,
}

impl Client {
    /// Copies a row-major array to `device`. `data` is not used after the call.
    ///
    /// # Errors
    /// `data` has another size than the type, or the plugin refuses the call.
    pub fn upload(&self, data: &[u8], ty: &TensorType, device: &Device) -> Result<Buffer> {
        if data.len() != ty.host_bytes() {
            let message = format!("cannot upload {} bytes as {ty}, which has {}", data.len(), ty.host_bytes());
            return Err(Error::Argument(message));
        }
        let (buffer, done) = self.buffer_from_host(data, ty, None, device, HostBufferSemantics::OnlyDuringCall)?;
        done.wait()?;
        Ok(buffer)
    }

    /// Starts to copy an array to `device`. For an array that is not row-major and dense, `strides`
    /// are the bytes from one element to the next in each dimension.
    ///
    /// # Errors
    /// `data` has another size than type and strides need, or the plugin refuses the call.
    pub fn start_upload(
        &self,
        data: HostBytes,
        ty: &TensorType,
        strides: Option<&[i64]>,
        device: &Device,
    ) -> Result<Upload> {
        let needed = strides.map_or(ty.host_bytes(), |strides| {
            let last = ty.dims.iter().zip(strides).map(|(dim, stride)| (dim - 1) * stride).sum::<i64>();
            if ty.elements() == 0 { 0 } else { last as usize + ty.element_type.host_bits() / 8 }
        });
        if data.bytes().len() != needed || strides.is_some_and(|s| s.len() != ty.dims.len() || s.iter().any(|&s| s < 0))
        {
            let message = format!("cannot upload {} bytes as {ty}, which has {needed}", data.bytes().len());
            return Err(Error::Argument(message));
        }
        let semantics = HostBufferSemantics::UntilTransferCompletes;
        let (buffer, done) = self.buffer_from_host(data.bytes(), ty, strides, device, semantics)?;
        Ok(Upload { buffer: Some(buffer), done: Some(done), _memory: data })
    }

    /// Copies numbers to `device`, as [`Self::upload`] does.
    ///
    /// # Errors
    /// `data` has another size than the type, or the plugin refuses the call.
    pub fn upload_slice<T: bytemuck::Pod>(&self, data: &[T], ty: &TensorType, device: &Device) -> Result<Buffer> {
        self.upload(bytemuck::cast_slice(data), ty, device)
    }

    /// Makes a buffer that borrows host memory for its whole life, where the plugin can: the CPU
    /// plugin does if the address is a multiple of 64, and copies otherwise. The memory is released
    /// when the plugin no longer uses it.
    ///
    /// # Errors
    /// `data` has another size than the type, or the plugin refuses the call.
    pub fn borrow(&self, data: HostBytes, ty: &TensorType, device: &Device) -> Result<Buffer> {
        if data.bytes().len() != ty.host_bytes() {
            let message = format!("cannot borrow {} bytes as {ty}, which has {}", data.bytes().len(), ty.host_bytes());
            return Err(Error::Argument(message));
        }
        let (buffer, done) = self.buffer_from_host(data.bytes(), ty, None, device, HostBufferSemantics::ZeroCopy)?;
        // The event fires after the buffer is destroyed: waiting for it here would never return.
        done.drop_when_ready(data)?;
        Ok(buffer)
    }

    /// Calls `BufferFromHostBuffer`. The caller has checked that the array of these strides is in
    /// `data`.
    fn buffer_from_host(
        &self,
        data: &[u8],
        ty: &TensorType,
        strides: Option<&[i64]>,
        device: &Device,
        semantics: HostBufferSemantics,
    ) -> Result<(Buffer, Event)> {
        let out = self.api().call(ClientBufferFromHostBuffer {
            client: self.ptr(),
            data: data.as_ptr().cast(),
            r#type: ty.element_type as c_int,
            dims: ty.dims.as_ptr(),
            num_dims: ty.dims.len(),
            byte_strides: strides.map_or(std::ptr::null(), <[i64]>::as_ptr),
            num_byte_strides: strides.map_or(0, <[i64]>::len),
            host_buffer_semantics: semantics as c_int,
            device: device.ptr(),
            ..CStruct::zeroed()
        })?;
        Ok((Buffer::new(self, out.buffer, ty.clone()), Event::new(self.api(), out.done_with_host_buffer)))
    }

    /// Allocates arrays on `device` that are filled piece by piece: see [`TransferManager`].
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn transfer_manager(&self, types: &[TensorType], device: &Device) -> Result<TransferManager> {
        let spec = |ty: &TensorType| ShapeSpec {
            dims: ty.dims.as_ptr(),
            num_dims: ty.dims.len(),
            element_type: ty.element_type as c_int,
            ..ShapeSpec::zeroed()
        };
        let specs: Vec<ShapeSpec> = types.iter().map(spec).collect();
        let out = self.api().call(ClientCreateBuffersForAsyncHostToDevice {
            client: self.ptr(),
            shape_specs: specs.as_ptr(),
            num_shape_specs: specs.len(),
            memory: device.default_memory()?.ptr(),
            ..CStruct::zeroed()
        })?;
        Ok(TransferManager {
            client: self.clone(),
            ptr: out.transfer_manager,
            types: types.to_vec(),
            sent: vec![0; types.len()],
            pending: Vec::new(),
        })
    }
}

/// A transfer of an array to a device, with the host memory that it reads.
pub struct Upload {
    buffer: Option<Buffer>,
    done: Option<Event>,
    _memory: HostBytes,
}

impl Upload {
    /// Returns the size of the array in host memory, in bytes.
    pub fn host_bytes(&self) -> usize {
        self.buffer.as_ref().map_or(0, |buffer| buffer.ty().host_bytes())
    }

    /// Waits until the host's memory is no longer read. Programs that use the buffer wait for the
    /// transfer to finish.
    ///
    /// # Errors
    /// The transfer failed.
    pub fn wait(mut self) -> Result<Buffer> {
        self.done.take().map_or(Ok(()), Event::wait)?;
        Ok(self.buffer.take().expect("it is taken here only"))
    }
}

impl Drop for Upload {
    /// Waits, since the memory must outlive the transfer.
    fn drop(&mut self) {
        let _ = self.done.take().map(Event::wait);
    }
}

/// Arrays on one device that are filled by asynchronous transfers of their parts.
pub struct TransferManager {
    client: Client,
    ptr: Ptr,
    types: Vec<TensorType>,
    /// Bytes sent so far of each array.
    sent: Vec<usize>,
    /// Running transfers, with the memory that they read.
    pending: Vec<(Event, HostBytes)>,
}
// SAFETY: the handle is only used through `&mut self` or by value.
unsafe impl Send for TransferManager {}

impl TransferManager {
    /// Starts the transfer of the next part of array `index`. Parts follow each other without gaps.
    ///
    /// # Errors
    /// The part is empty or leaves the array, or the plugin refuses the call.
    pub fn send(&mut self, index: usize, part: HostBytes) -> Result<()> {
        let total = self.types[index].host_bytes();
        let offset = self.sent[index];
        let end = offset + part.bytes().len();
        if end > total || (part.bytes().is_empty() && total > 0) {
            let (len, ty) = (part.bytes().len(), &self.types[index]);
            return Err(Error::Argument(format!("cannot send {len} bytes at {offset} of {ty}, which has {total}")));
        }
        let out = self.client.api().call(TransferData {
            transfer_manager: self.ptr,
            buffer_index: index as c_int,
            data: part.bytes().as_ptr().cast(),
            offset: offset as i64,
            transfer_size: part.bytes().len() as i64,
            is_last_transfer: end == total,
            ..CStruct::zeroed()
        })?;
        self.sent[index] = end;
        self.pending.push((Event::new(self.client.api(), out.done_with_h2d_transfer), part));
        Ok(())
    }

    /// Waits for all transfers. Returns the arrays.
    ///
    /// # Errors
    /// An array was not sent whole, or a transfer failed.
    pub fn finish(mut self) -> Result<Vec<Buffer>> {
        self.drain()?;
        for (ty, &sent) in self.types.iter().zip(&self.sent) {
            if sent != ty.host_bytes() {
                let total = ty.host_bytes();
                return Err(Error::Argument(format!("only {sent} of the {total} bytes of {ty} were sent")));
            }
        }
        let retrieve = |(index, ty): (usize, &TensorType)| {
            let args = RetrieveBuffer { transfer_manager: self.ptr, buffer_index: index as c_int, ..CStruct::zeroed() };
            Ok(Buffer::new(&self.client, self.client.api().call(args)?.buffer_out, ty.clone()))
        };
        self.types.iter().enumerate().map(retrieve).collect()
    }

    fn drain(&mut self) -> Result<()> {
        let results: Vec<Result<()>> = self.pending.drain(..).map(|(event, _memory)| event.wait()).collect();
        results.into_iter().collect()
    }
}

impl Drop for TransferManager {
    fn drop(&mut self) {
        let _ = self.drain(); // the memory of running transfers must outlive them
        self.client.api().destroy(TransferManagerDestroy { transfer_manager: self.ptr, ..CStruct::zeroed() });
    }
}

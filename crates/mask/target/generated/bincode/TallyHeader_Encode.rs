impl :: bincode :: Encode for TallyHeader
{
    fn encode < __E : :: bincode :: enc :: Encoder >
    (& self, encoder : & mut __E) ->core :: result :: Result < (), :: bincode
    :: error :: EncodeError >
    {
        :: bincode :: Encode :: encode(&self.model, encoder) ?; :: bincode ::
        Encode :: encode(&self.layout, encoder) ?; :: bincode :: Encode ::
        encode(&self.group, encoder) ?; :: bincode :: Encode ::
        encode(&self.sparsity, encoder) ?; :: bincode :: Encode ::
        encode(&self.members, encoder) ?; :: bincode :: Encode ::
        encode(&self.mask_root, encoder) ?; core :: result :: Result :: Ok(())
    }
}
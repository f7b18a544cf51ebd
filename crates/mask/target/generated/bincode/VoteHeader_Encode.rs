impl :: bincode :: Encode for VoteHeader
{
    fn encode < __E : :: bincode :: enc :: Encoder >
    (& self, encoder : & mut __E) ->core :: result :: Result < (), :: bincode
    :: error :: EncodeError >
    {
        :: bincode :: Encode :: encode(&self.model, encoder) ?; :: bincode ::
        Encode :: encode(&self.layout, encoder) ?; :: bincode :: Encode ::
        encode(&self.pruner, encoder) ?; :: bincode :: Encode ::
        encode(&self.group, encoder) ?; :: bincode :: Encode ::
        encode(&self.sparsity, encoder) ?; :: bincode :: Encode ::
        encode(&self.samples, encoder) ?; :: bincode :: Encode ::
        encode(&self.sequence_tokens, encoder) ?; core :: result :: Result ::
        Ok(())
    }
}
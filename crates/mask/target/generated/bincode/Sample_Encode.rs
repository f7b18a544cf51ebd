impl :: bincode :: Encode for Sample
{
    fn encode < __E : :: bincode :: enc :: Encoder >
    (& self, encoder : & mut __E) ->core :: result :: Result < (), :: bincode
    :: error :: EncodeError >
    {
        :: bincode :: Encode :: encode(&self.digest, encoder) ?; :: bincode ::
        Encode :: encode(&self.group, encoder) ?; :: bincode :: Encode ::
        encode(&self.sparsity, encoder) ?; :: bincode :: Encode ::
        encode(&self.names, encoder) ?; :: bincode :: Encode ::
        encode(&self.number, encoder) ?; core :: result :: Result :: Ok(())
    }
}